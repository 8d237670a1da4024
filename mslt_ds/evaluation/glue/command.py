"""`mslt-ds evaluate glue`."""

from __future__ import annotations

import argparse
import os

from mslt_ds import paths
from mslt_ds.distributed.world import World, world_from_environment
from mslt_ds.evaluation import job
from mslt_ds.evaluation.encoder import Encoder
from mslt_ds.evaluation.execution import device_for
from mslt_ds.evaluation.glue import submission
from mslt_ds.evaluation.glue.recipe import QUICK_GLUE, GlueRecipe
from mslt_ds.evaluation.glue.runs import GlueRunner, Source
from mslt_ds.evaluation.glue.tasks import TASKS, choose
from mslt_ds.evaluation.recipe import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=paths.path, required=True, metavar="DIR", help="a Hugging Face folder"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=["all"], metavar="TASK",
        help=f"all (default), or some of {', '.join(TASKS)}",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=paths.path_text, required=True, metavar="DIR",
        help="GLUE's files (DIR/CoLA/train.tsv, ...), saved datasets (DIR/cola, ...), or hub",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help=f"{len(QUICK_GLUE['learning_rates'])} learning rates and "
        f"{len(QUICK_GLUE['seeds'])} seeds instead of 4 and 5",
    )  # fmt: skip
    parser.add_argument(
        "--predict-test", action="store_true",
        help="then predict the test sets and write submission.zip for GLUE's server",
    )  # fmt: skip
    job.add_arguments(parser)


def build(arguments: argparse.Namespace, world: World) -> GlueRunner:
    """A runner whose recipe, model and data have been checked."""
    tasks = choose(arguments.tasks)
    recipe = load(
        GlueRecipe, arguments.config, arguments.overrides, QUICK_GLUE if arguments.quick else {}
    )
    source = Source(arguments.data)
    encoder = Encoder.open(arguments.model)
    device = device_for(recipe.device, world, recipe.precision)
    data = {task.name: source.read(task, recipe) for task in tasks}
    return GlueRunner(encoder, recipe, device, data, quick=arguments.quick)


def run(arguments: argparse.Namespace) -> int:
    if not arguments.predict_test:
        job.run(arguments, build)
        return 0
    tests = submission.read_tests(Source(arguments.data), choose(arguments.tasks))
    missing = submission.what_is_missing(tests)
    if missing and world_from_environment(os.environ).is_main:
        print(missing)
    results = job.run(arguments, build)
    if results is not None:
        runner = build(arguments, world_from_environment(os.environ))
        submission.predict_tests(runner, results, tests, arguments.output)
        print(f"written to {arguments.output / submission.ZIP}")
        if missing:
            print(missing)
    return 0
