"""Processes that are forked from one that has imported what they need (`tests.loaded`)."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.loaded"])


class ForkedScript:
    """A script in a process and session of its own, with what tests use of `Popen`."""

    def __init__(
        self, arguments: list[str], folder: Path, environment: Mapping[str, str], log: Path
    ) -> None:
        self._process = CONTEXT.Process(
            target=_run, args=(arguments, str(folder), dict(environment), str(log))
        )
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> None:
        self._process.join()


def _run(arguments: list[str], folder: str, environment: Mapping[str, str], log: str) -> None:
    os.setsid()
    os.chdir(folder)
    sink = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(sink, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
