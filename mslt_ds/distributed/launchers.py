"""The launchers above a process: which of its ancestors they are, and whether they have ended.

A launcher that is killed leaves its ranks behind, and `deepspeed` does so at any signal: it consists of
two processes, `deepspeed` and `deepspeed.launcher.launch`, and the first one, which the user or the
scheduler knows, has no handlers. Ranks therefore watch all launchers above them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import PurePath

import psutil

_PROGRAMS = frozenset(
    [
        "deepspeed",
        "ds",
        "torchrun",
        "srun",
        "slurmstepd",
        "mpirun",
        "mpiexec",
        "orted",
        "prted",
        "hydra_pmi_proxy",
    ]
)
_DEEPSPEED_LAUNCH = "deepspeed.launcher.launch"
_MODULES = frozenset(
    [_DEEPSPEED_LAUNCH, "deepspeed.launcher.runner", "torch.distributed.run",
     "torch.distributed.launch"]
)  # fmt: skip
# Who adopts the children of a process that has ended.
_INITS = frozenset(["systemd", "init", "tini", "docker-init", "dumb-init", "catatonit", "conmon"])


def launcher_name(command: Sequence[str]) -> str | None:
    """The launcher that a process with this command line is, else None."""
    if not command:
        return None
    # slurmstepd calls itself "slurmstepd: [job.step]".
    program = PurePath(command[0]).name.partition(":")[0]
    if not program.startswith("python"):
        return program if program in _PROGRAMS else None
    for position, argument in enumerate(command[1:], start=1):
        if argument == "-m":
            module = command[position + 1] if position + 1 < len(command) else ""
            return module if module in _MODULES else None
        if not argument.startswith("-"):
            script = PurePath(argument).name
            return script if script in _PROGRAMS else None
    return None


def add_launcher_argument(parser: argparse.ArgumentParser) -> None:
    """Accept `--local_rank`, which the deepspeed launcher adds to a script's own arguments.

    Its value isn't used: the environment holds the same.
    """
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)


class Launchers:
    """The launchers above this process, as they are now."""

    def __init__(self) -> None:
        self._found: list[tuple[psutil.Process, str]] = []
        self._lost: str | None = None
        for process in psutil.Process().parents():
            try:
                name = launcher_name(process.cmdline())
                if name is not None:
                    self._found.append((process, name))
                if name == _DEEPSPEED_LAUNCH and _adopted(process):
                    self._lost = "deepspeed"  # before this process looked
            except psutil.Error:
                continue

    def ended(self) -> str | None:
        """The name of one that has ended, else None."""
        for process, name in self._found:
            try:
                if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                    return name
            except psutil.NoSuchProcess:
                return name
        return self._lost


def ranks(process: psutil.Process) -> list[psutil.Process]:
    """The processes that `process` starts as a launcher; itself where it is none."""
    try:
        if launcher_name(process.cmdline()) is None:
            return [process]
        return [rank for child in process.children() for rank in ranks(child)]
    except psutil.Error:
        return []


def _adopted(process: psutil.Process) -> bool:
    """Whether the parent of `process` isn't the one that started it."""
    parent = process.parent()
    if parent is None:
        return True
    if launcher_name(parent.cmdline()) is not None:
        return False
    return parent.pid == 1 or parent.name() in _INITS
