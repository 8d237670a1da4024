"""`mslt-ds train`, the main job: from a recipe and a token store to a Hugging Face model.

    deepspeed mslt_ds/train.py --config configs/demo.yaml
    mslt-ds train --config configs/demo.yaml              (a single process)

The recipe, files and environment are checked before a model is built or a process group is joined.
A run that was stopped or killed resumes when the same command is given again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # A script's own folder comes first on the path, where `mslt_ds/data` would be `data`. The
    # checkout takes its place, so that the script runs without being installed, too.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mslt_ds.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from mslt_ds.distributed.launchers import add_launcher_argument
from mslt_ds.distributed.signals import EXIT_CODE_STOPPED, StopFlag, Stopped, end_process
from mslt_ds.errors import EnvironmentProblem, LostRank, MsltError, first_line, report
from mslt_ds.recipe.loading import Recipe, add_recipe_arguments, load_recipe

if TYPE_CHECKING:
    from mslt_ds.distributed.world import World

_OTHER_RANKS_WAIT_SECONDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mslt-ds train`."""
    add_recipe_arguments(parser)
    add_launcher_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the main job; the exit code."""
    # Made before torch is imported, so that no warning is lost while the run is prepared.
    flag = StopFlag()
    # Where rank 0 has gone, torch would print a stack of its own for each heartbeat.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from mslt_ds.distributed.world import world_from_environment

    world = world_from_environment(os.environ)
    try:
        _train(load_recipe(arguments.config, arguments.overrides), world, flag)
    except MsltError as error:
        # Launchers kill the other ranks when the first one ends. Rank 0 prints at once and the others
        # wait, so that an error of all ranks is usually printed once, and that of one rank always.
        if isinstance(error, LostRank):
            if error.is_told:
                report(error, f" (rank {world.rank})")
            end_process(error.exit_code)  # the interpreter's own end may wait for the lost rank
        if not world.is_main:
            time.sleep(_OTHER_RANKS_WAIT_SECONDS)
        return report(error, f" (rank {world.rank})" if world.world_size > 1 else "")
    except Stopped:
        # All is saved and closed. The interpreter's own end may wait for ranks that have ended.
        end_process(EXIT_CODE_STOPPED)
    finally:
        flag.close()
    return 0


@contextmanager
def _memory_problems() -> Iterator[None]:
    """Turn what torch and Python raise for want of memory into EnvironmentProblem."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_torchs = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
        if not is_torchs and not isinstance(error, MemoryError):
            raise
        raise EnvironmentProblem(
            f"out of memory ({first_line(error)}); lower train.micro_batch_size or the model's sizes, or "
            "free memory; mslt-ds plan estimates what each stage needs"
        ) from error


@_memory_problems()
def _train(recipe: Recipe, world: World, flag: StopFlag) -> None:
    from mslt_ds.distributed.world import choose_device, join, leave

    recipe.check_files()
    recipe.check_world(world.world_size)
    train = recipe.config.train
    device = choose_device(train.device, world, train.precision)
    recipe.check_environment(device.type)

    from mslt_ds.disk.lock import RunLock
    from mslt_ds.distributed.watchdog import PATIENCE
    from mslt_ds.preparation import prepare
    from mslt_ds.run import train as train_stages

    run_dir = recipe.config.run_dir
    with RunLock.held(run_dir, os.environ) if world.is_main else nullcontext() as lock:
        try:
            prepared = prepare(recipe, world, device, lock)
            # Above what the watchdog allows, which says more than a library.
            timeout = max(1800.0, 2 * PATIENCE * train.hang_timeout_seconds)
            join(world, device, os.environ, timedelta(seconds=timeout))
        except Stopped:
            if world.is_main:
                print(f"stopped by {flag.reason} before the run began", flush=True)
            raise
        train_stages(prepared, flag)
        # Not after an error: leaving may wait for the other ranks, and this one has a message to print.
        leave()
