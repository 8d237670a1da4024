"""`mslt-ds evaluate`: its three subcommands."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        parser.error("the package torchmetrics is missing; pip install 'mslt-ds[eval]'")
    from mslt_ds.evaluation import glue_command, squad_command

    subparsers = parser.add_subparsers(metavar="WHAT", required=True)
    for name, module, summary in (
        ("glue", glue_command, "Fine-tune on GLUE's tasks and score them on dev."),
        ("squad", squad_command, "Fine-tune on SQuAD, or score predictions for it."),
    ):
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(evaluate=module.run)
    summary = "Print results of several models side by side."
    comparison = subparsers.add_parser("compare", help=summary, description=summary)
    comparison.add_argument(
        "outputs", nargs="+", type=Path, metavar="DIR", help="output folders, two or more"
    )
    comparison.set_defaults(evaluate=_compare)


def run(arguments: argparse.Namespace) -> int:
    try:
        return arguments.evaluate(arguments)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with the runs that aren't finished")
        return 130


def _compare(arguments: argparse.Namespace) -> int:
    from mslt_ds.errors import RecipeError
    from mslt_ds.evaluation import job, results

    if len(arguments.outputs) < 2:
        raise RecipeError(f"compare: {arguments.outputs[0]} alone; name two output folders or more")
    print(results.compare([job.read_results(output) for output in arguments.outputs]), end="")
    return 0
