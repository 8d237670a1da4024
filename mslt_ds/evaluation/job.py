"""What `evaluate glue` and `evaluate squad` share: plan or run a grid, and write its results."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from mslt_ds import paths
from mslt_ds.atomic import replace_text
from mslt_ds.distributed.world import World, device_name, world_from_environment
from mslt_ds.durations import duration
from mslt_ds.errors import EnvironmentProblem, RecipeError
from mslt_ds.evaluation import results
from mslt_ds.evaluation.cells import CellFolder
from mslt_ds.evaluation.execution import device_for, plan, run_cells, run_in_workers
from mslt_ds.evaluation.grid import Cell, make_cells, share
from mslt_ds.evaluation.results_file import RESULTS
from mslt_ds.evaluation.runner import Runner
from mslt_ds.shard import Shard

TABLE = "table.md"
RECIPE = "recipe.yaml"

Build = Callable[[argparse.Namespace, World], Runner]
"""Maps the command line and this process's rank to a checked runner."""


def add_arguments(parser: argparse.ArgumentParser, output_required: bool = True) -> None:
    """Add the options that both subcommands have."""
    parser.add_argument(
        "--config", type=paths.path, metavar="FILE", help="changes to the recipe, a YAML file"
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
        help='change one key of the recipe, e.g. --set "seeds=[1, 2, 3]"',
    )  # fmt: skip
    parser.add_argument(
        "--output", type=paths.path, required=output_required, metavar="DIR",
        help="folder for cells, results.json and table.md; an unfinished grid is continued",
    )  # fmt: skip
    share_of = parser.add_mutually_exclusive_group()
    share_of.add_argument(
        "--workers", type=int, default=1, metavar="N",
        help="processes that share the runs, worker i on GPU i (default: 1)",
    )  # fmt: skip
    share_of.add_argument(
        "--shard", metavar="I/N", help="do only every N-th run, from the I-th: for array tasks"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only print the runs and their predicted hours"
    )


def run(arguments: argparse.Namespace, build: Build) -> results.Results | None:
    """Plan the grid or run it. Returns the content of results.json once every run is finished, else
    None."""
    if arguments.workers < 1:
        raise RecipeError(f"--workers: {arguments.workers}; it has to be at least 1")
    shard = Shard.parse(arguments.shard) if arguments.shard else Shard()
    here = world_from_environment(os.environ)
    if arguments.workers > 1 and here.world_size > 1:
        raise RecipeError(
            f"--workers: {arguments.workers}, but a launcher has started {here.world_size} processes, "
            "which share the runs already; omit --workers, or start the command without a launcher"
        )
    runner = build(arguments, here)
    cells = _cells(runner)
    folder = CellFolder(arguments.output, runner.fingerprints())
    # Finds a cell of another model anywhere in the grid before any training.
    finished = sum(folder.find(cell) is not None for cell in cells)
    notes = [f"{len(cells)} runs, {finished} finished; recipe: {runner.recipe.protocol()}"]
    notes += runner.check()
    if here.is_main:
        print("\n".join(notes), flush=True)
    if arguments.dry_run:
        _print_plan(runner, share(cells, shard), folder)
        return None
    _begin(arguments.output, runner)
    if arguments.workers > 1:
        last = arguments.workers - 1
        device_for(
            runner.recipe.device, World(last, arguments.workers, last), runner.recipe.precision
        )
        run_in_workers(
            _worker, (arguments, build), arguments.workers, cells, folder, arguments.output / "logs"
        )
    else:
        mine = share(share(cells, shard), Shard(here.rank + 1, here.world_size))
        run_cells(runner, mine, folder)
    return _finish(arguments.output, runner, cells, folder)


def _cells(runner: Runner) -> list[Cell]:
    return make_cells(runner.work(), runner.recipe.learning_rates, runner.recipe.seeds)


def _worker(job: tuple[argparse.Namespace, Build], world: World) -> None:
    """One process of `--workers`: takes cells of the whole grid that no other process holds."""
    arguments, build = job
    runner = build(arguments, world)
    run_cells(runner, _cells(runner), CellFolder(arguments.output, runner.fingerprints()))


def _begin(output: Path, runner: Runner) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with (output / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            replace_text(output / RECIPE, runner.recipe.to_yaml())
    except OSError as error:
        raise EnvironmentProblem(
            f"--output: {output}: {error.strerror or error}; choose a folder that can be written"
        ) from error


def _finish(
    output: Path, runner: Runner, cells: Sequence[Cell], folder: CellFolder
) -> results.Results | None:
    """Write the results if all cells are finished."""
    found = [folder.find(cell) for cell in cells]
    done = [cell for cell in found if cell is not None]
    if len(done) < len(cells):
        print(
            f"{len(done)} of {len(cells)} runs are finished; the results are written by the process "
            "that finishes the last, or by the same command without --shard",
            flush=True,
        )
        return None
    content = {
        **runner.description,
        "protocol": runner.recipe.protocol(),
        "recipe": runner.recipe.model_dump(mode="json"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": dict(Counter(cell["device"] for cell in done)),
        "versions": {name: version(name) for name in ("torch", "transformers", "torchmetrics")},
        "tasks": results.summarize(done, runner.columns(), runner.constants()),
        "cells": done,
    }
    text = results.table(content)
    with (output / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        replace_text(output / TABLE, text)
        replace_text(output / RESULTS, json.dumps(content, indent=1) + "\n")
    print(f"\n{text}\nwritten to {output / RESULTS} and {output / TABLE}", flush=True)
    return content


def _print_plan(runner: Runner, cells: Sequence[Cell], folder: CellFolder) -> None:
    planned = []
    rows = [["task", "runs", "finished", "steps a run", "seconds a step", "hours left"]]
    for task in plan(runner, cells, folder):
        planned.append(task)
        rows.append(
            [
                task.task, str(task.runs), str(task.finished), f"{task.steps:,}",
                f"{task.step_seconds:.4f}", f"{task.hours:.2f}",
            ]
        )  # fmt: skip
    hours = sum(task.hours for task in planned)
    runs = sum(task.runs - task.finished for task in planned)
    print("\n".join(results.markdown(rows)))
    print(
        f"{runs} runs, {hours:.2f} hours ({duration(3600 * hours)}) of training on one "
        f"{device_name(runner.device)}, {torch.get_num_threads()} threads"
    )
