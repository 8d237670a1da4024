"""One family of errors, split by cause: what a user has to change decides the class.

Every message names the place (a recipe key, a file, an environment variable), the value found
there, and what to do. `cli.py` and `train.py` print the message alone, without a traceback, and
end the process with the class's `exit_code`.
"""


class MsltError(Exception):
    """Base of every error a user can cause or repair."""

    exit_code = 1


class RecipeError(MsltError):
    """A recipe or an override holds a key or a value that can't be used."""

    exit_code = 2


class DataError(MsltError):
    """A text file, tokenizer or token store is missing, malformed or damaged."""

    exit_code = 2


class CheckpointError(MsltError):
    """A run folder or checkpoint doesn't fit the run that asks for it."""

    exit_code = 2


class DivergenceError(MsltError):
    """The loss is no number any more: going on would only overwrite the checkpoints before."""

    exit_code = 4


class EnvironmentProblem(MsltError):
    """The machine, the launcher or an installed package lacks what the run needs."""

    exit_code = 3


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
