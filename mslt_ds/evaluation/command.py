"""`mslt-ds evaluate`: its three subcommands, each imported when it's asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from mslt_ds.evaluation import glue_command, squad_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    return arguments.evaluate(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from mslt_ds.errors import RecipeError
    from mslt_ds.evaluation import job, results

    if len(arguments.outputs) < 2:
        raise RecipeError(f"compare: {arguments.outputs[0]} alone; name two output folders or more")
    print(results.compare([job.read_results(output) for output in arguments.outputs]), end="")
    return 0
