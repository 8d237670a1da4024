"""The command `mslt-ds`: prepare, inspect, plan, train.

Notable: what a subcommand needs is imported when it's the one that was asked for, so `mslt-ds plan`
answers without loading torch. A user's mistake ends in its message and exit code, no traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mslt_ds import __version__
from mslt_ds.errors import MsltError, RecipeError

if TYPE_CHECKING:
    from mslt_ds.config import RunConfig

_COMMANDS = {
    "prepare": "Make a token store from text files.",
    "inspect": "Print what a token store holds, or one training instance as text.",
    "plan": "Print a recipe's stages and what they cost.",
    "train": "Run a recipe in a single process.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's); the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    parser = argparse.ArgumentParser(
        prog="mslt-ds", description="Pretrain BERT by multi-stage layerwise training on DeepSpeed."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == command == "prepare":
            from mslt_ds.data import prepare

            prepare.add_arguments(subparser)
            subparser.set_defaults(run=prepare.run)
        elif name == command == "inspect":
            from mslt_ds.data import inspect

            inspect.add_arguments(subparser)
            subparser.set_defaults(run=inspect.run)
        elif name == command == "plan":
            _add_plan_arguments(subparser)
            subparser.set_defaults(run=_plan)
    if command == "train":
        from mslt_ds import train

        return train.main(arguments[1:])
    parsed = parser.parse_args(arguments)
    try:
        return parsed.run(parsed) or 0
    except MsltError as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        return error.exit_code


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="RECIPE", help="recipe, a YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override one key of the recipe, e.g. --set plan.method=full",
    )
    parser.add_argument(
        "--world-size",
        metavar="N",
        help="ranks to plan for (default: WORLD_SIZE of the environment, or 1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _plan(arguments: argparse.Namespace) -> int:
    import json

    from mslt_ds import cost
    from mslt_ds.config import load_config
    from mslt_ds.plan import build_plan

    config = load_config(arguments.config, arguments.overrides)
    world_size = _world_size(arguments.world_size)
    config.check_world(world_size)
    vocab_size = _vocab_size(config)
    assumed = vocab_size is None
    if vocab_size is None:
        vocab_size = cost.ASSUMED_VOCAB_SIZE
    description = cost.describe_plan(config, build_plan(config), vocab_size, world_size)
    if arguments.json:
        print(json.dumps(description, indent=1))
        return 0

    from mslt_ds.report.plan_table import print_plan

    print_plan(description, vocab_size_assumed=assumed)
    return 0


def _vocab_size(config: RunConfig) -> int | None:
    """The recipe's or its token store's; None where neither says."""
    if config.model.vocab_size is not None or not os.path.exists(config.data.path):
        return config.model.vocab_size
    from mslt_ds.data.store import read_manifest

    return read_manifest(Path(config.data.path))["vocab_size"]


def _world_size(given: str | None) -> int:
    text = os.environ.get("WORLD_SIZE", "1") if given is None else given
    if not text.isdecimal() or int(text) < 1:
        place = "WORLD_SIZE" if given is None else "--world-size"
        raise RecipeError(f"{place}: {text}; it has to be a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
