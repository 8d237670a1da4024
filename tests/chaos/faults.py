"""Runs that meet faults at random moments, until they are complete: `python -m tests.chaos.faults`.

The kinds of faults are in `kinds.py`. Where a fault ends the run, the same command is given again. In each run some
batches, always the same ones, have gradients that aren't finite, two of them in a row, so that it goes back. The
final weights have to be those of a run that met no other fault, bit for bit. Prints a table of what happened.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.starts import started  # isort: skip  # imports torch in the way that saves memory

import torch

from mslt_ds.telemetry.metrics import read_lines
from tests.chaos.kinds import KINDS, NEED_A_VOLUME, Kind, Scene
from tests.distributed.recipes import recipe, weights_at, zero_config
from tests.text import write_text
from tests.volume import MountingNotAllowedError, Volume, mounted

MOST_IN_A_RUN = 12
CASES = {
    f"{optimizer}-zero{zero}": (optimizer, zero)
    for optimizer in ("adamw", "lamb")
    for zero in (0, 1)
}
BATCH = 12
SPOILED_STEPS = (7, 8, 26, 41)
NOT_FINITE = "gradient not finite"


@dataclass
class Outcome:
    """What became of the faults of a kind."""

    faults: int = 0
    steps_lost: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # until the fault was noticed


@dataclass
class Chaos:
    """What stays the same from run to run.

    folder: of recipes, logs and stores; the runs lie in `runs`
    volume: what `runs` lies on; None: mounting isn't allowed here
    outcomes: kind of fault -> what became of them; those that were survived are added
    """

    folder: Path
    runs: Path
    volume: Volume | None
    hang_seconds: float
    draw: random.Random
    outcomes: dict[str, Outcome] = field(default_factory=lambda: defaultdict(Outcome))

    def __post_init__(self) -> None:
        self._kinds = self._deal()

    @property
    def store(self) -> Path:
        return self.folder / "tokens"

    def _deal(self) -> Iterator[Kind]:
        """Each kind once, then by their weights."""
        kinds = [kind for kind in KINDS if self.volume or kind not in NEED_A_VOLUME]
        yield from self.draw.sample(kinds, len(kinds))
        while True:
            yield self.draw.choices(kinds, [KINDS[kind] for kind in kinds])[0]

    def config(self, name: str, case: str) -> Path:
        """A recipe of three stages of 20 steps."""
        optimizer, zero = CASES[case]
        changes: dict[str, Any] = {
            "optimizer": {"name": optimizer},
            "deepspeed": zero_config(self.folder, zero),
            "checkpoint": {"every_steps": 3},
            "plan": {"steps_per_stage": 20, "joint_steps": 20},
            "train": {
                "hang_timeout_seconds": self.hang_seconds,
                "max_skipped_steps": 2,
                "global_batch_size": BATCH,
            },
            "data": {"eval_path": str(self.store)},
            "evaluation": {"instances": 24},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(recipe(self.store, self.runs, name, **changes)))
        return path

    def complete(self, config: Path, whole_seconds: float, faults: int) -> int:
        """Run until nothing is left to do, with at most `faults` faults; how many there were."""
        run_dir, met = self.runs / config.stem, 0
        with started(config, run_dir, [BATCH * step for step in SPOILED_STEPS]) as start:
            scene = Scene(start, self.draw, self.hang_seconds, self.store, self.volume)
            while True:
                delay = self.draw.uniform(0.0, whole_seconds / 2) if met < faults else 600.0
                if start.wait(delay):
                    assert set(start.codes.values()) == {0}, (start.codes, start.said[-3000:])
                    return met
                assert met < faults, start.said[-3000:]
                self._meet(next(self._kinds), scene)
                met += 1
                if not start.running():
                    start.begin()

    def _meet(self, kind: Kind, scene: Scene) -> None:
        name, start = kind.__name__.replace("_", " "), scene.start
        pids, done = start.pids, steps_done(start.run_dir)
        try:
            seconds = kind(scene)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}\n{start.said[-3000:]}") from None
        outcome = self.outcomes[name]
        outcome.faults += 1
        if seconds is not None:
            outcome.seconds.append(seconds)
        if pids == start.pids and start.running():
            outcome.steps_lost.append(0)
        else:
            # A next start drops the lines of the steps that it repeats, and goes on from what is saved now.
            done = max(done, steps_done(start.run_dir))
            outcome.steps_lost.append(max(0, done - steps_saved(start.run_dir)))

    def count_not_finite(self, run_dir: Path) -> None:
        """Add what became of the spoiled batches of a run that is complete."""
        events = [line for line in read_lines(run_dir / "metrics.jsonl") if "event" in line]
        skipped = {tuple(e["instances"]) for e in events if e["event"] == "step_skipped"}
        assert len(skipped) == len(SPOILED_STEPS), skipped
        backs = {e["step"]: e["to_step"] for e in events if e["event"] == "rolled_back"}
        assert len(backs) == 1, backs
        outcome = self.outcomes[NOT_FINITE]
        outcome.faults += len(skipped)
        outcome.steps_lost += [1] * (len(skipped) - 2) + [s + 1 - to for s, to in backs.items()]


def steps_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    lines = read_lines(path) if path.exists() else []
    return max((line["step"] for line in lines if "loss" in line), default=-1) + 1


def steps_saved(run_dir: Path) -> int:
    names = [path.name for path in (run_dir / "checkpoints").glob("step_*")]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def run_cases(chaos: Chaos, faults: int, cases: Sequence[str], seconds: float) -> None:
    """`faults` faults, the same number in each case, or as many as there is time for in `seconds`.

    AssertionError where a run doesn't survive, or ends in other weights.
    """
    first = time.monotonic()
    for position, case in enumerate(cases, start=1):
        whole = chaos.config(f"{case}-whole", case)
        began = time.monotonic()
        chaos.complete(whole, 0, 0)
        whole_seconds = time.monotonic() - began
        end = first + seconds * position / len(cases)
        left, number = faults // len(cases), 0
        while left > 0 and time.monotonic() < end:
            number += 1
            broken = chaos.config(f"{case}-{number}", case)
            left -= chaos.complete(broken, whole_seconds, min(left, MOST_IN_A_RUN))
            run_dir = chaos.runs / broken.stem
            assert_same_bits(chaos.runs / whole.stem, run_dir)
            chaos.count_not_finite(run_dir)
            shutil.rmtree(run_dir)
            print(f"{case}: {faults // len(cases) - left} faults, {number} runs", flush=True)


def assert_same_bits(one: Path, other: Path) -> None:
    expected, found = weights_at(one, "model"), weights_at(other, "model")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def table(outcomes: dict[str, Outcome]) -> str:
    """The outcomes as the table of docs/reliability.md."""
    lines = [
        "| fault | times | survived | steps lost: mean, most | seconds until it was noticed: median, most |",
        "|---|---|---|---|---|",
    ]
    for kind, outcome in sorted(outcomes.items()):
        lost, seconds = outcome.steps_lost, outcome.seconds
        waited = "" if not seconds else f"{statistics.median(seconds):.1f}, {max(seconds):.1f}"
        lines.append(
            f"| {kind} | {outcome.faults} | {outcome.faults} | {statistics.fmean(lost):.1f}, {max(lost)} | {waited} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=140)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang-seconds", type=float, default=10.0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most")
    parser.add_argument("--folder", type=Path, default=Path(".chaos"))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_text(folder / "text.txt")
    subprocess.run(
        [sys.executable, "-m", "mslt_ds.cli", "prepare", "--input", folder / "text.txt",
         "--output", folder / "tokens", "--vocab-size", "400"], check=True,
    )  # fmt: skip
    with ExitStack() as stack:
        try:
            volume = stack.enter_context(mounted(folder, megabytes=64))
        except MountingNotAllowedError as error:
            print(f"mounting isn't allowed here ({error}): no faults of disks", flush=True)
            volume = None
        runs = folder / "runs" if volume is None else volume.path
        chaos = Chaos(folder, runs, volume, arguments.hang_seconds, random.Random(arguments.seed))
        try:
            run_cases(chaos, arguments.faults, arguments.cases, 60 * arguments.minutes)
        finally:
            print(table(chaos.outcomes), flush=True)
    met = sum(o.faults for kind, o in chaos.outcomes.items() if kind != NOT_FINITE)
    print(f"{met} faults, all survived")


if __name__ == "__main__":
    main()
