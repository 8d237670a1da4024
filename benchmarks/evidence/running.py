"""Runs the cells of an experiment that are missing, each as a run of the main program.

A folder of results holds

    data/{train,valid}/      token stores, made where they are missing
    runs/<cell>/             the run of a cell that isn't finished, to go on with; of all, with `keep`
    again/<cell>/            the run of a finished cell that was trained again
    cells/<cell>.json        the result of a finished cell
    logs/<cell>.log          what the main program printed

Cells are runs that resume, so this program may be stopped and started at any moment.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.experiment import (
    Cell,
    Changes,
    Corpus,
    Experiment,
    cells,
    checked,
    digest_of,
    merged,
    recipe_of,
    stage_flops,
)
from mslt_ds.atomic import replace_text
from mslt_ds.config import strict_yaml
from mslt_ds.data.store import TokenStore
from mslt_ds.disk.model_folder import load_weights, weights_digest
from mslt_ds.distributed.signals import EXIT_CODE_STOPPED
from mslt_ds.distributed.world import device_name
from mslt_ds.errors import DivergenceError, MsltError
from mslt_ds.shard import Shard
from mslt_ds.telemetry.metrics import read_lines, token_loss

ROOT = Path(__file__).resolve().parents[2]
_CURVE_POINTS = 60


class CellError(MsltError):
    """The main program failed on a cell."""


@dataclass(frozen=True)
class Results:
    """The folder of an experiment's results."""

    folder: Path

    @property
    def train(self) -> Path:
        return self.folder / "data" / "train"

    @property
    def experiment(self) -> Path:
        """A copy of the experiment's YAML."""
        return self.folder / "experiment.yaml"

    @property
    def timing(self) -> Path:
        return self.folder / "timing.json"

    @property
    def valid(self) -> Path:
        return self.folder / "data" / "valid"

    def run_dir(self, cell: Cell, within: str = "runs") -> Path:
        return self.folder / within / cell.name.replace("/", "_")

    def log(self, cell: Cell) -> Path:
        return self.folder / "logs" / f"{cell.name.replace('/', '_')}.log"

    def result(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Other processes that come here with these results wait for the block's end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(
                    f"{self.folder}: waits for another process, which prepares the text", flush=True
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> dict[Cell, dict[str, Any]]:
        """Finished cells -> their results."""
        found = {}
        for path in sorted((self.folder / "cells").rglob("*.json")):
            result = json.loads(path.read_text())
            found[Cell(**result["cell"])] = result
        return found

    def step_seconds(self) -> dict[str, list[float]]:
        """Method -> seconds of a step of each of its stages; empty where `time` hasn't measured them."""
        return json.loads(self.timing.read_text())["step_seconds"] if self.timing.exists() else {}

    def losses(self) -> dict[Cell, float]:
        """Finished cells -> final held-out loss, infinite where the run diverged."""
        return {
            cell: float("inf") if result["diverged"] else result["held_out_loss"]
            for cell, result in self.read().items()
        }


def prepare(experiment: Experiment, results: Results) -> None:
    """Make the token stores where they are missing; one of several processes does."""
    done = results.folder / "data" / ".done"
    with results.alone():
        if not done.exists():
            _make_stores(experiment.corpus, results)
            done.touch()


def _make_stores(corpus: Corpus, results: Results) -> None:
    data = results.folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    train, held_out = corpus.train, corpus.held_out
    if corpus.packages:
        script = str(ROOT / "demo" / "docstring_corpus.py")
        _call(script, "--output", str(data / "text"), "--packages", *corpus.packages)
        train, held_out = [str(data / "text/train.txt")], [str(data / "text/heldout.txt")]
    assert train is not None and held_out is not None  # Corpus checks it
    command = ["-m", "mslt_ds.cli", "prepare"]
    train, held_out = ([str(Path(name).resolve()) for name in names] for names in (train, held_out))
    _call(*command, "--input", *train, "--output", str(results.train),
          "--vocab-size", str(corpus.vocab_size))  # fmt: skip
    _call(*command, "--input", *held_out, "--output", str(results.valid),
          "--tokenizer", str(results.train))  # fmt: skip


def run(
    experiment: Experiment,
    results: Results,
    *,
    pattern: str,
    shard: Shard,
    hours: float | None,
    keep: bool = False,
) -> int:
    """Run the missing cells whose name matches `pattern`; the number that is still missing.

    shard: this process's part of the cells
    hours: after which a running cell is stopped, with a checkpoint; None: no limit
    keep: the runs of finished cells, which hold their models
    """
    end = None if hours is None else time.monotonic() + 3600 * hours
    prepare(experiment, results)
    vocab_size = TokenStore.open(results.train).vocab_size
    # A result decides which cells follow, so the list is made anew after each.
    while cell := next(_missing(experiment, results, pattern, shard), None):
        if end is not None and time.monotonic() > end:
            print(f"stopped before {cell.name}; the same command goes on")
            break
        print(f"{time.strftime('%H:%M:%S')} {cell.name}", flush=True)
        if not _run_cell(experiment, results, cell, vocab_size, end, keep=keep):
            print(f"stopped in {cell.name}; the same command goes on")
            break
    return len(list(_missing(experiment, results, "*", Shard())))


def _missing(
    experiment: Experiment, results: Results, pattern: str, shard: Shard
) -> Iterator[Cell]:
    losses = results.losses()
    for cell in cells(experiment, losses):
        if (
            cell not in losses
            and shard.takes(_number(cell))
            and fnmatch.fnmatch(cell.name, pattern)
        ):
            yield cell


def _number(cell: Cell) -> int:
    """Which shard a cell belongs to must not depend on which cells are known yet."""
    return int.from_bytes(hashlib.blake2b(cell.name.encode(), digest_size=8).digest(), "little")


def _run_cell(
    experiment: Experiment,
    results: Results,
    cell: Cell,
    vocab_size: int,
    end: float | None,
    *,
    keep: bool,
) -> bool:
    """Train the cell and write its result. False if time ended first."""
    run_dir, path = results.run_dir(cell), results.result(cell)
    result = _train(experiment, results, cell, run_dir, vocab_size, end)
    if result is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(result) + "\n")
    if not keep:
        shutil.rmtree(run_dir)
    return True


def run_again(experiment: Experiment, results: Results, pattern: str) -> Iterator[tuple[bool, str]]:
    """Train the finished cells whose name matches `pattern` once more, each into `again/`, which keeps its
    run. For each, whether it is what it was, and a line that says so.

    Raises: CellError if there is no such cell, or a run of one is there that was trained again before
    """
    found = {c: r for c, r in results.read().items() if fnmatch.fnmatch(c.name, pattern)}
    if not found:
        raise CellError(f"{results.folder}: no finished cell is called {pattern}")
    folders = [results.run_dir(cell, "again") for cell in found]
    if ended := [folder for folder in folders if (folder / "model").exists()]:
        raise CellError(f"{ended[0]}: was trained again already; remove it to do it once more")
    prepare(experiment, results)
    vocab_size = TokenStore.open(results.train).vocab_size
    for (cell, before), folder in zip(found.items(), folders, strict=True):
        now = _train(experiment, results, cell, folder, vocab_size, None)
        if now is None:
            yield False, f"{cell.name}: stopped; the same command goes on"
            return
        yield is_same(before, now), f"{cell.name}: {_difference(before, now)}"


def is_same(before: Changes, now: Changes) -> bool:
    """Whether two results have equal weights or, where both diverged, equal curves."""
    key = "curve" if before["diverged"] else "weights"
    return before["diverged"] == now["diverged"] and before[key] == now[key]


def _difference(before: Changes, now: Changes) -> str:
    """What a cell that was trained again has in common with its result."""
    if before["diverged"] and is_same(before, now):
        return "diverged again, with the same losses before"
    loss = f"held-out loss {_loss_text(now)}"
    if is_same(before, now):
        return f"equal weights, {loss}"
    changed = [
        f"{key} {value} instead of {before[place].get(key)}"
        for place in ("digests", "machine")
        for key, value in now[place].items()
        if value != before[place].get(key)
    ]
    why = ", ".join(changed) or "though data, recipe, device and versions are equal"
    return f"different weights, {loss} instead of {_loss_text(before)}; {why}"


def _loss_text(result: Changes) -> str:
    return "diverged" if result["diverged"] else f"{result['held_out_loss']:.4f}"


def _train(
    experiment: Experiment,
    results: Results,
    cell: Cell,
    run_dir: Path,
    vocab_size: int,
    end: float | None,
) -> Changes | None:
    """Train the cell in `run_dir`; its result, None if time ended first."""
    recipe, log = recipe_of(experiment, cell, vocab_size), results.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    recipe_file = write_recipe(results, run_dir, recipe)
    with log.open("a") as output:
        process = subprocess.Popen(
            [*launch(experiment), "--config", str(recipe_file)],
            stdout=output, stderr=subprocess.STDOUT, env=environment(experiment),
        )  # fmt: skip
        code = _wait(process, end)
    if code == EXIT_CODE_STOPPED:
        return None
    if code not in (0, DivergenceError.exit_code):
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
        raise CellError(
            f"{cell.name}: the main program ended with exit code {code}; {log}:\n{tail}"
        )
    recipe_file.unlink()
    outcome = _outcome(run_dir, stage_flops(checked(recipe), vocab_size), diverged=code != 0)
    digests = {
        "recipe": digest_of(recipe),
        "train": TokenStore.open(results.train).digest,
        "valid": TokenStore.open(results.valid).digest,
    }
    return {
        "cell": {
            "method": cell.method, "budget": cell.budget,
            "learning_rate": cell.learning_rate, "seed": cell.seed,
        },
        **outcome, "digests": digests, "machine": _machine(experiment),
    }  # fmt: skip


def launch(experiment: Experiment) -> list[str]:
    """The command that trains; `python` is this interpreter."""
    return [sys.executable if word == "python" else word for word in experiment.launch]


def environment(experiment: Experiment) -> dict[str, str]:
    """Of the process that trains."""
    return os.environ | {"OMP_NUM_THREADS": str(experiment.threads)}


def write_recipe(results: Results, run_dir: Path, recipe: Changes) -> Path:
    """The recipe with the places of its data and its run, in a file beside `run_dir`."""
    own = {
        "name": run_dir.name,
        "output_dir": str(run_dir.parent),
        "data": {"path": str(results.train), "eval_path": str(results.valid)},
    }
    # Not `with_suffix`: a name holds a learning rate and so a point.
    path = run_dir.parent / f"{run_dir.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, strict_yaml.dump(merged(recipe, own)))
    return path


def _wait(process: subprocess.Popen[bytes], end: float | None) -> int:
    """The exit code. At `end`, and if this program is stopped, the run is asked to stop."""
    asked = False
    while True:
        try:
            code = process.wait(timeout=1)
            # Asked within its first seconds, it ends by the signal itself; nothing is lost.
            return EXIT_CODE_STOPPED if asked and code == -signal.SIGTERM else code
        except subprocess.TimeoutExpired:
            if end is not None and time.monotonic() > end and not asked:
                process.send_signal(signal.SIGTERM)
                asked = True
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            asked = True


def _outcome(run_dir: Path, flops: list[float], *, diverged: bool) -> Changes:
    """What the run's files say of it. flops: of each stage."""
    lines = list(read_lines(run_dir / "metrics.jsonl"))
    steps = [line for line in lines if "event" not in line]
    ends = [line for line in lines if line.get("event") == "stage_end"]
    plan = json.loads((run_dir / "plan.json").read_text())
    every = max(1, len(steps) // _CURVE_POINTS)
    found: Changes = {
        "diverged": diverged,
        "steps": plan["total_steps"],
        "flops": sum(flops),
        "stages": [
            {
                "depth": stage["depth"],
                "trainable_layers": stage["trainable_layers"],
                "steps": stage["steps"],
                "seq_length": stage["seq_length"],
                "global_batch_size": stage["global_batch_size"],
                "flops": cost,
                "median_step_seconds": end.get("median_step_seconds"),
                "held_out_loss": token_loss(end),
            }
            # A run that diverged has fewer ends than stages.
            for stage, cost, end in zip(plan["stages"], flops, ends, strict=False)
        ],
        "curve": [[line["step"], _rounded(token_loss(line))] for line in steps[::every]],
    }
    if diverged:
        return found
    last = next(line for line in lines if line.get("event") == "run_end")
    return found | {
        "held_out_loss": token_loss(ends[-1]),
        "unigram_entropy": last["unigram_entropy"],
        "weights": weights_digest(load_weights(run_dir / "model")),
    }


def _rounded(loss: float | None) -> float | None:
    return None if loss is None else round(loss, 4)


def _machine(experiment: Experiment) -> dict[str, Any]:
    return {
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": experiment.threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "deepspeed", "transformers", "mslt-ds")},
    }


def _call(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
