"""Process 1 of the images: starts a program, passes signals on to it, and waits for all that it started.

    docker run mslt-ds:gpu train --config RECIPE                          a command of mslt-ds
    docker run mslt-ds:gpu deepspeed mslt_ds/train.py --config RECIPE     any other program

The kernel ignores a signal to process 1 that has no handler, and `deepspeed` has none. A launcher isn't
told of the signal, only the ranks that it started: it ends when they have saved and ended, with their
exit code.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

import psutil

from mslt_ds.distributed.launchers import ranks

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(arguments: list[str]) -> int:
    """Run the program; its exit code, as a shell would give it."""
    is_program = bool(arguments) and shutil.which(arguments[0]) is not None
    program = subprocess.Popen(arguments if is_program else ["mslt-ds", *arguments])
    told: list[int] = []
    started: set[psutil.Process] = set()

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        started.update(psutil.Process().children(recursive=True))
        for process in ranks(psutil.Process(program.pid)):
            with suppress(psutil.Error):
                process.send_signal(number)

    for number in _SIGNALS:
        signal.signal(number, pass_on)
    code = program.wait()
    if told:
        # Where the program was a script, what it started goes on to save.
        for process in started.union(psutil.Process().children()):
            with suppress(psutil.Error):
                process.send_signal(told[-1])
        with suppress(ChildProcessError):
            while True:
                os.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
