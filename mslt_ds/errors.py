"""The errors that a user can cause or repair, one class for each cause, and how they are printed.

Every message names the place (a recipe key, a file, an environment variable), the value found
there, and the remedy. An entry point prints the message without a traceback (`report`) and ends the
process with the class's `exit_code`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class MsltError(Exception):
    """Base of all errors that a user can cause or repair."""

    exit_code = 1


class RecipeError(MsltError):
    """A recipe or an override holds a key or a value that can't be used."""

    exit_code = 2


class DataError(MsltError):
    """A text file, tokenizer or token store is missing, malformed or damaged."""

    exit_code = 2


class CheckpointError(MsltError):
    """A run folder or checkpoint doesn't fit the run that uses it."""

    exit_code = 2


class DivergenceError(MsltError):
    """The numbers of the run are unusable, and stay so after `train.max_rollbacks` rollbacks."""

    exit_code = 4


class EnvironmentProblem(MsltError):
    """The machine, the launcher or an installed package lacks what the run needs."""

    exit_code = 3


class LostRank(MsltError):
    """Another rank has ended or doesn't answer.

    is_told: whether this rank is the one of all that come to this end that prints it
    """

    exit_code = 5
    is_told = True


class RunIsAliveError(MsltError):
    """Another start of the same run is alive."""

    exit_code = 6


@contextmanager
def failures_as(make: Callable[[str], MsltError]) -> Iterator[None]:
    """Turn whatever another package raises inside of this block into the error that `make` makes of the
    first line of its message. tokenizers and safetensors raise plain exceptions, and panics of
    compiled code aren't even an `Exception`."""
    try:
        yield
    except (MsltError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise make(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """The first line of another package's message, to quote in one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def report(error: MsltError, where: str = "") -> int:
    """Print the message on standard error, each line after `error<where>: `; its exit code."""
    sys.stderr.write("".join(f"error{where}: {line}\n" for line in str(error).splitlines()))
    sys.stderr.flush()
    return error.exit_code
