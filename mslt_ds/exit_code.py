"""How a command ends: a user's mistake with its message, without a traceback."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

from mslt_ds.errors import MsltError, report


def exit_code_of(command: Callable[[], int]) -> int:
    """Run `command`. Its exit code; that of the MsltError it raised; 130 if it was interrupted; 1 if the reader of
    its output has gone, as `head` does."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except MsltError as error:
        return report(error)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # as a shell reports SIGINT


def _reader_has_gone() -> bool:
    """Whether whoever read the output wants no more of it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
