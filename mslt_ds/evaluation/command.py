"""`mslt-ds evaluate`: its subcommands."""

from __future__ import annotations

import argparse

from mslt_ds import paths
from mslt_ds.errors import EnvironmentProblem, RecipeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    try:
        from mslt_ds.evaluation import mlm_command
        from mslt_ds.evaluation.glue import command as glue_command
        from mslt_ds.evaluation.squad import command as squad_command
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise EnvironmentProblem(
            f"the package {package} is missing; pip install 'mslt-ds[eval]'"
        ) from error

    subparsers = parser.add_subparsers(metavar="WHAT", required=True)
    for name, module, summary in (
        ("glue", glue_command, "Fine-tune on GLUE's tasks and score them on dev."),
        ("squad", squad_command, "Fine-tune on SQuAD, or score predictions for it."),
        ("mlm", mlm_command, "Held-out loss and perplexity of a masked language model, by source."),
    ):
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(evaluate=module.run)
    summary = "Print results of several models side by side."
    comparison = subparsers.add_parser("compare", help=summary, description=summary)
    comparison.add_argument(
        "outputs", nargs="+", type=paths.path, metavar="DIR", help="output folders, two or more"
    )
    comparison.set_defaults(evaluate=_compare)


def run(arguments: argparse.Namespace) -> int:
    try:
        return arguments.evaluate(arguments)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues with the runs that aren't finished")
        return 130


def _compare(arguments: argparse.Namespace) -> int:
    from mslt_ds.evaluation import results
    from mslt_ds.evaluation.results_file import read_results

    if len(arguments.outputs) < 2:
        raise RecipeError(f"compare: {arguments.outputs[0]} alone; name two output folders or more")
    needed = ("median", "spread", "one_answer_for_all")
    found = [read_results(output, needed) for output in arguments.outputs]
    if not results.shared_tasks(found):
        lines = [
            f"{output}: {', '.join(one['tasks'])}"
            for output, one in zip(arguments.outputs, found, strict=True)
        ]
        raise RecipeError("\n".join(["compare: no task is in all of them; choose others", *lines]))
    print(results.compare(found), end="")
    return 0
