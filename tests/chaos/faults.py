"""Runs that meet faults at random moments, until they are complete: `python -m tests.chaos.faults`.

A fault is a kill of one rank or of all, a rank that is stopped (SIGSTOP), or a rank that is told to end
(SIGTERM). After each one the same command is given again. The final weights have to be those of a run that
nothing happened to, bit for bit. Prints a table of what happened.

Ranks are forked from a process that has imported everything, so that a start takes a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tests.loaded  # isort: skip  # noqa: F401, before torch, and so that no rank has to

import torch

from mslt_ds import cli
from mslt_ds.distributed.signals import EXIT_CODE_STOPPED
from mslt_ds.errors import EnvironmentProblem, LostRank
from tests.distributed.conftest import free_port
from tests.distributed.recipes import recipe, weights_at, zero_config
from tests.text import write_text

RANKS = 2
MOST_IN_A_RUN = 12
HANG_SECONDS = 10.0
LAUNCHER_SECONDS = 15.0
"""A launcher ends the other ranks so long after one has ended. Before the ranks have joined, nothing else does."""
CASES = {
    f"{optimizer}-zero{zero}": (optimizer, zero)
    for optimizer in ("adamw", "lamb")
    for zero in (0, 1)
}
KINDS = {"one killed": 5, "all killed": 5, "one stopped": 1, "one told to end": 2}
"""Weights of the kinds of faults."""


@dataclass
class Outcome:
    """What became of the faults of a kind."""

    faults: int = 0
    steps_lost: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # until all other ranks had ended


class Start:
    """One start of a run: its ranks, as srun would start them."""

    def __init__(self, config: Path, log: Path, run_dir: Path) -> None:
        self._metrics, self._began = run_dir / "metrics.jsonl", time.time()
        port = str(free_port())
        self.pids = [self._fork(rank, port, config, log) for rank in range(RANKS)]
        self.codes: dict[int, int] = {}

    @staticmethod
    def _fork(rank: int, port: str, config: Path, log: Path) -> int:
        if pid := os.fork():
            return pid
        code = 1
        try:
            sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            torch.set_num_threads(1)
            code = cli.main(["train", "--config", str(config)])
            sys.stdout.flush()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    @property
    def trains(self) -> bool:
        """Whether this start has written metrics: its ranks have joined."""
        return self._metrics.exists() and self._metrics.stat().st_mtime > self._began

    def running(self) -> list[int]:
        """The ranks that haven't ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank in range(RANKS) if rank not in self.codes]

    def wait(self, seconds: float) -> bool:
        """Whether all ranks have ended within `seconds`."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def signal(self, number: signal.Signals, ranks: Sequence[int]) -> None:
        for rank in ranks:
            if rank in self.running():
                os.kill(self.pids[rank], number)


@contextmanager
def started(config: Path, log: Path, run_dir: Path) -> Iterator[Start]:
    start = Start(config, log, run_dir)
    try:
        yield start
    finally:
        start.signal(signal.SIGKILL, range(RANKS))
        start.wait(30)


def steps_done(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    steps = [line["step"] for line in map(_line, lines) if "loss" in line]
    return max(steps, default=-1) + 1


def steps_saved(run_dir: Path) -> int:
    names = [path.name for path in (run_dir / "checkpoints").glob("step_*")]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def _line(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:
        return {}  # cut off by a kill


def meet(kind: str, start: Start, draw: random.Random) -> float | None:
    """Let the fault happen; the seconds until all ranks that live have ended by themselves, or None
    where the launcher had to end them because they hadn't joined yet.

    AssertionError where they don't, or end otherwise than they should.
    """
    victim = draw.randrange(RANKS)
    others = [rank for rank in range(RANKS) if rank != victim]
    began = time.monotonic()
    if kind == "all killed":
        start.signal(signal.SIGKILL, range(RANKS))
        assert start.wait(30)
        return None
    number = {"one killed": signal.SIGKILL, "one stopped": signal.SIGSTOP,
              "one told to end": signal.SIGTERM}[kind]  # fmt: skip
    trained = start.trains
    start.signal(number, [victim])
    # What may take long is given six times the time.
    end = began + (8 * HANG_SECONDS if trained else LAUNCHER_SECONDS)
    while set(others) & set(start.running()) and time.monotonic() < end:
        time.sleep(0.02)
    seconds = time.monotonic() - began
    if not trained:
        start.signal(signal.SIGTERM, others)
        while set(others) & set(start.running()) and time.monotonic() < end + 30:
            time.sleep(0.02)
    left = set(others) & set(start.running())
    assert not left, f"{kind}: ranks {left} go on after {seconds:.0f} s"
    if kind == "one stopped":
        start.signal(signal.SIGKILL, [victim])
    assert start.wait(30), f"{kind}: rank {victim} doesn't end"
    allowed = {0, EXIT_CODE_STOPPED} if kind == "one told to end" else {0, LostRank.exit_code}
    if not trained:
        allowed |= {EXIT_CODE_STOPPED, EnvironmentProblem.exit_code}
    codes = {start.codes[rank] for rank in others}
    assert codes <= allowed, f"{kind}: exit codes {start.codes}"
    return seconds if trained else None


def run_until_complete(
    config: Path, run_dir: Path, whole_seconds: float, draw: random.Random, faults: int, outcomes: dict[str, Outcome],
) -> int:  # fmt: skip
    """Start the run again and again, with at most `faults` faults; how many there were."""
    log, met = config.with_suffix(".log"), 0
    while True:
        with started(config, log, run_dir) as start:
            delay = draw.uniform(0.0, whole_seconds) if met < faults else 600.0
            if start.wait(delay):
                assert set(start.codes.values()) == {0}, (start.codes, log.read_text()[-3000:])
                return met
            assert met < faults, log.read_text()[-3000:]
            kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
            try:
                seconds = meet(kind, start, draw)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from None
        met += 1
        outcome = outcomes[kind]
        outcome.faults += 1
        if seconds is not None:
            outcome.seconds.append(seconds)
        outcome.steps_lost.append(max(0, steps_done(run_dir) - steps_saved(run_dir)))


def chaos(
    folder: Path,
    store: Path,
    faults: int,
    outcomes: dict[str, Outcome],
    seed: int = 0,
    cases: Sequence[str] = tuple(CASES),
    seconds: float = float("inf"),
) -> None:
    """`faults` faults, the same number in each case, or as many as there is time for in `seconds`.

    outcomes: kind of fault -> what became of them; those that were survived are added

    AssertionError where a run doesn't survive, or ends in other weights.
    """
    draw = random.Random(seed)
    first = time.monotonic()
    for position, name in enumerate(cases, start=1):
        optimizer, zero = CASES[name]
        changes: dict[str, Any] = {
            "optimizer": {"name": optimizer},
            "deepspeed": zero_config(folder, zero),
            "checkpoint": {"every_steps": 3},
            "plan": {"steps_per_stage": 20, "joint_steps": 20},
            "train": {"hang_timeout_seconds": HANG_SECONDS},
            "data": {"eval_path": str(store)},
            "evaluation": {"instances": 24},
        }

        def config(name: str, changes: dict[str, Any] = changes) -> Path:
            path = folder / f"{name}.yaml"
            path.write_text(json.dumps(recipe(store, folder / "runs", name, **changes)))
            return path

        whole = config(f"{name}-whole")
        began = time.monotonic()
        assert run_until_complete(whole, folder / "runs" / whole.stem, 0, draw, 0, outcomes) == 0
        whole_seconds = time.monotonic() - began
        end = first + seconds * position / len(cases)
        left, number = faults // len(cases), 0
        while left > 0 and time.monotonic() < end:
            number += 1
            broken = config(f"{name}-{number}")
            run_dir = folder / "runs" / broken.stem
            left -= run_until_complete(
                broken, run_dir, whole_seconds, draw, min(left, MOST_IN_A_RUN), outcomes
            )
            assert_same_bits(folder / "runs" / whole.stem, run_dir)
            shutil.rmtree(run_dir)
            print(f"{name}: {faults // len(cases) - left} faults, {number} runs", flush=True)


def assert_same_bits(one: Path, other: Path) -> None:
    expected, found = weights_at(one, "model"), weights_at(other, "model")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def table(outcomes: dict[str, Outcome]) -> str:
    """The outcomes as the table of docs/reliability.md."""
    lines = [
        "| fault | times | survived | steps lost: mean, most | seconds until the other rank ended: median, most |",
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
    parser.add_argument("--hang-seconds", type=float, default=HANG_SECONDS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most")
    parser.add_argument("--folder", type=Path, default=Path(".chaos"))
    arguments = parser.parse_args()
    globals()["HANG_SECONDS"] = arguments.hang_seconds
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_text(folder / "text.txt")
    subprocess.run(
        [sys.executable, "-m", "mslt_ds.cli", "prepare", "--input", folder / "text.txt",
         "--output", folder / "tokens", "--vocab-size", "400"], check=True,
    )  # fmt: skip
    outcomes: dict[str, Outcome] = defaultdict(Outcome)
    try:
        chaos(
            folder,
            folder / "tokens",
            arguments.faults,
            outcomes,
            arguments.seed,
            arguments.cases,
            60 * arguments.minutes,
        )
    finally:
        print(table(outcomes), flush=True)
    print(f"{sum(outcome.faults for outcome in outcomes.values())} faults, all survived")


if __name__ == "__main__":
    main()
