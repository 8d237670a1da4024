"""The main job, read top to bottom: a recipe and a token store in, a Hugging Face model out.

    deepspeed mslt_ds/train.py --config configs/demo.yaml
    mslt-ds train --config configs/demo.yaml              (a single process)

Everything a user can get wrong is checked before a model is built or a process group is joined. A
run that was stopped or killed goes on by the same command: there is no other way to resume.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path, where `mslt_ds/data` would be `data`. The
    # checkout takes its place, so that the script runs without being installed, too.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import time
from collections.abc import Sequence

from mslt_ds.distributed.signals import StopFlag
from mslt_ds.distributed.world import World, choose_device, join, leave, world_from_environment
from mslt_ds.errors import MsltError
from mslt_ds.recipe.loading import Recipe, add_recipe_arguments, load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mslt-ds train` and of this script."""
    add_recipe_arguments(parser)
    # The deepspeed launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's); the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """Run the main job; the exit code."""
    # From here on a scheduler's warning is heard, however early it comes.
    flag = StopFlag()
    try:
        world = world_from_environment(os.environ)
    except MsltError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    try:
        exit_code = _train(load_recipe(arguments.config, arguments.overrides), world, flag)
    except MsltError as error:
        _say(error, world)
        return error.exit_code
    flag.close()
    return exit_code


def _say(error: MsltError, world: World) -> None:
    """Print the message once where it can be had once, and on every rank where it can't.

    Launchers kill the other ranks when the first one ends. Rank 0 speaks at once and the rest
    wait, so that usually one message is seen; a rank that fails alone still gets to speak.
    """
    if not world.is_main:
        time.sleep(3)
    where = f" (rank {world.rank})" if world.world_size > 1 else ""
    sys.stderr.write("".join(f"error{where}: {line}\n" for line in str(error).splitlines()))
    sys.stderr.flush()


def _train(recipe: Recipe, world: World, flag: StopFlag) -> int:
    recipe.check_files()
    recipe.check_world(world.world_size)
    train = recipe.config.train
    device = choose_device(train.device, world, train.precision)
    recipe.check_environment(device.type)

    from mslt_ds.run import Run

    job = Run.prepare(recipe, world, device)
    join(world, device, os.environ)
    exit_code = job.train(flag)
    # Not after an error: the others may be waiting for this rank, which has a message to give first.
    leave()
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
