"""The command `mslt-ds` and its subcommands.

A subcommand is a module with `add_arguments(parser)` and `run(arguments) -> exit code`. Only the one
that is given is imported, so `mslt-ds plan` doesn't load torch.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from mslt_ds import __version__
from mslt_ds.exit_code import exit_code_of

# name: (module, summary)
_COMMANDS = {
    "prepare": ("mslt_ds.data.prepare.command", "Make a token store from text."),
    "inspect": (
        "mslt_ds.data.inspect",
        "Print what a token store holds, or one training instance as text.",
    ),
    "plan": ("mslt_ds.planning.command", "Print a recipe's stages and what they cost."),
    "evaluate": (
        "mslt_ds.evaluation.command",
        "Score a model: fine-tuned on GLUE or SQuAD, or by its held-out loss; compare models.",
    ),
    "doctor": ("mslt_ds.doctor.command", "Check whether this machine or allocation can train."),
    "status": ("mslt_ds.report.status_command", "Print how far a run is, from another shell."),
    "report": ("mslt_ds.analysis.report_command", "Write a page about one or several runs."),
    "attention": (
        "mslt_ds.analysis.attention_command",
        "Draw and measure what the heads of a run or a model look at.",
    ),
    "push": ("mslt_ds.push", "Upload a run's models and their cards to the Hugging Face Hub."),
    "probe": ("mslt_ds.probe", "Compare growth operators some hundred steps after the growth."),
    "train": ("mslt_ds.train", "Run a recipe in a single process."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's); the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = arguments[0] if arguments else ""
    parser = argparse.ArgumentParser(
        prog="mslt-ds", description="Pretrain BERT by multi-stage layerwise training on DeepSpeed."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command() -> int:
        for name, (module_name, summary) in _COMMANDS.items():
            subparser = subparsers.add_parser(name, help=summary, description=summary)
            if name == given:
                module = importlib.import_module(module_name)
                module.add_arguments(subparser)
                subparser.set_defaults(run=module.run)
        parsed = parser.parse_args(arguments)
        return parsed.run(parsed) or 0

    return exit_code_of(command)


if __name__ == "__main__":
    sys.exit(main())
