"""How long a run's steps were waited for: from the command to the first, and from stage to stage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil

_LAUNCHERS = ("deepspeed", "torchrun", "accelerate")
_LAUNCHER_MODULES = ("deepspeed.launcher.", "torch.distributed.")


class Waits:
    """Measures how long a first step was waited for. It holds only the time of the last step."""

    def __init__(self) -> None:
        self._since, self._of = command_start(), "command"

    def first_step(self) -> dict[str, Any]:
        """Fields of the event `first_step`, when a stage's first step is done: `seconds` since `since`, which
        is the `command` or the `last_step` before."""
        return {"seconds": time.time() - self._since, "since": self._of}

    def last_step(self) -> None:
        """A stage's last step is done."""
        self._since, self._of = time.time(), "last_step"


def command_start() -> float:
    """Unix time at which the command that this process belongs to began: its own, or its launcher's."""
    process = psutil.Process()
    started = process.create_time()
    try:
        for parent in process.parents():
            if _is_launcher(parent.cmdline()):
                started = min(started, parent.create_time())
    except psutil.Error:  # a parent that has ended, or whose command line is hidden
        pass
    return started


def _is_launcher(command: list[str]) -> bool:
    """Whether a command line is that of a launcher itself, and not of a shell whose script calls one."""
    program = command[:2]  # an interpreter and a script, or a script
    by_name = any(Path(word).name in _LAUNCHERS for word in program)
    return by_name or any(word.startswith(_LAUNCHER_MODULES) for word in command[1:5])
