"""The cells of a grid, run by one or several processes, or only planned.

A process walks a list of cells and runs those that are neither finished nor held by another process.
`--workers` starts several processes that walk the same list, one for each GPU. The ranks of a launcher
and the shards of `--shard` each walk a part of the list.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mslt_ds.distributed.world import World, choose_device, device_name
from mslt_ds.durations import duration
from mslt_ds.errors import EnvironmentProblem, MsltError, report
from mslt_ds.evaluation.cells import CellFolder
from mslt_ds.evaluation.finetune import Batch, Loss, Settings, fine_tune
from mslt_ds.evaluation.grid import Cell
from mslt_ds.evaluation.progress import GridProgress
from mslt_ds.evaluation.recipe import FineTuning
from mslt_ds.evaluation.runner import Runner

_POLL_SECONDS = 1.0
_PLANNED_STEPS = 6


def run_cells(runner: Runner, cells: Sequence[Cell], folder: CellFolder) -> None:
    """Run the unfinished cells in order, except those that another process holds."""
    work = runner.work()
    waiting = [cell for cell in cells if folder.find(cell) is None]
    with GridProgress(len(waiting), sum(work[cell.task] for cell in waiting)) as progress:
        if len(waiting) < len(cells):
            progress.say(f"{len(cells) - len(waiting)} of {len(cells)} runs are finished already")
        for cell in waiting:
            with folder.claim(cell) as mine:
                if mine and folder.find(cell) is None:
                    _run_cell(runner, cell, folder, progress, work[cell.task])
                else:
                    progress.end(work[cell.task], f"{cell.name}  left to another process")


def _run_cell(
    runner: Runner, cell: Cell, folder: CellFolder, progress: GridProgress, work: float
) -> None:
    began = time.monotonic()
    content = runner.run(cell, lambda share, text: progress.step(cell.name, share, work, text))
    where = {"device": device_name(runner.device), "threads": torch.get_num_threads()}
    folder.write(cell, content | where)
    took = duration(time.monotonic() - began)
    progress.end(work, f"{cell.name}  {runner.summary(content['scores'])}  {took}")


def device_for(requested: str, world: World, precision: str) -> torch.device:
    """The device of this process. EnvironmentProblem if there is none of the requested kind."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            f"device: cuda, but torch {torch.__version__} sees no GPU (CUDA_VISIBLE_DEVICES is "
            f"{os.environ.get('CUDA_VISIBLE_DEVICES')!r}); check nvidia-smi, or --set device=cpu"
        )
    return choose_device(requested, world, precision)


def run_in_workers(
    target: Callable[[Any, World], None],
    arguments: Any,
    count: int,
    cells: Sequence[Cell],
    folder: CellFolder,
    logs: Path,
) -> None:
    """Call `target(arguments, world)` in `count` processes, each with its own log, and wait for them.

    MsltError if one of them failed, after all have ended.
    """
    context = multiprocessing.get_context("spawn")
    logs.mkdir(parents=True, exist_ok=True)
    paths = [logs / f"worker_{number}.log" for number in range(1, count + 1)]
    workers = [
        context.Process(target=_work, args=(target, arguments, World(rank, count, rank), path))
        for rank, path in enumerate(paths)
    ]
    before = {cell.name for cell in cells if folder.find(cell) is not None}
    # The workers end with this process when it receives SIGTERM.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        for worker in workers:
            worker.start()
        with GridProgress(len(cells) - len(before), len(cells) - len(before)) as progress:
            progress.say(f"{count} workers; their lines are in {logs}")
            while True:
                alive = any(worker.is_alive() for worker in workers)
                for cell in cells:
                    if cell.name not in before and folder.find(cell) is not None:
                        before.add(cell.name)
                        progress.end(1, cell.name)
                if not alive:
                    break
                time.sleep(_POLL_SECONDS)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
            if worker.pid is not None:
                worker.join()
    failed = [
        f"worker {number} ended with exit code {worker.exitcode}; see {path}"
        for number, (worker, path) in enumerate(zip(workers, paths, strict=True), start=1)
        if worker.exitcode
    ]
    if failed:
        raise MsltError("\n".join(failed))


def _work(target: Callable[[Any, World], None], arguments: Any, world: World, log: Path) -> None:
    """The main function of a worker process."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends it to all processes; the parent ends us
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.world_size))
    try:
        target(arguments, world)
    except MsltError as error:
        sys.exit(report(error))


@dataclass(frozen=True)
class PlannedTask:
    """A task's part of a plan; `steps` of one run, `step_seconds` as measured."""

    task: str
    runs: int
    finished: int
    steps: int
    step_seconds: float

    @property
    def hours(self) -> float:
        """Hours of training for all unfinished runs on one device."""
        return (self.runs - self.finished) * self.steps * self.step_seconds / 3600


def plan(runner: Runner, cells: Sequence[Cell], folder: CellFolder) -> Iterator[PlannedTask]:
    """Yields each task's runs with a step time that is measured over a few steps."""
    for task in dict.fromkeys(cell.task for cell in cells):
        of_task = [cell for cell in cells if cell.task == task]
        finished = sum(folder.find(cell) is not None for cell in of_task)
        model, batches, loss_of = runner.sample_steps(of_task[0], _PLANNED_STEPS)
        seconds = mean_step_seconds(model, batches, loss_of, runner.recipe)
        yield PlannedTask(task, len(of_task), finished, runner.steps(task), seconds)


def mean_step_seconds(
    model: nn.Module, batches: Sequence[Batch], loss_of: Loss, recipe: FineTuning
) -> float:
    """The mean time of a step over `batches` in seconds, after a warm-up step. The learning rate is 0."""
    marks: list[float] = []

    def timed() -> Iterator[Batch]:
        for batch in (batches[-1], *batches):
            _synchronize(model)
            marks.append(time.perf_counter())
            yield batch
        _synchronize(model)
        marks.append(time.perf_counter())

    settings = Settings.of(recipe, learning_rate=0.0, seed=0, total_steps=len(batches) + 1)
    fine_tune(model, timed(), loss_of, settings)
    seconds = [end - start for start, end in itertools.pairwise(marks)]
    return statistics.fmean(seconds[1:])


def _synchronize(model: nn.Module) -> None:
    if next(model.parameters()).device.type == "cuda":
        torch.cuda.synchronize()
