"""Stopping in good order: a signal sets a flag, and at a step boundary all ranks agree to stop.

A scheduler's warning reaches some ranks a step earlier than others; whoever stopped alone would
leave the rest waiting in an all-reduce. So the flags are summed over the ranks once a step, on gloo
and asynchronously: started before the step's work and read after it, no rank waits for it, and the
GPU is not asked.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

EXIT_CODE_STOPPED = 85
"""Exit code of a run that was told to stop and wrote a checkpoint: start the same command again."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """Set by SIGTERM and SIGUSR1, from the moment it's made. For the main thread."""

    def __init__(self) -> None:
        self.is_set = False
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def close(self) -> None:
        """Ignore both signals: nothing is left to stop, and what comes now kills the interpreter.

        The first rank that exits with EXIT_CODE_STOPPED makes srun end the others by SIGTERM. One
        that dies of it on its way out would turn an orderly stop into a failure.
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True


class StopRequest:
    """Whether any rank's flag is set. Every rank has to make the same calls in the same order."""

    def __init__(self, flag: StopFlag) -> None:
        self._flag = flag
        self._agreed = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None
        self._group: Any = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None

    def ask(self) -> None:
        """Start asking the other ranks."""
        self._agreed.fill_(self._flag.is_set)
        if self._group is not None:
            self._work = dist.all_reduce(self._agreed, group=self._group, async_op=True)

    def answer(self) -> bool:
        """True, on all ranks alike, if any flag was set when its rank asked."""
        if self._work is not None:
            self._work.wait()
        return bool(self._agreed.item())

    def asked_now(self) -> bool:
        """Ask and wait for the answer."""
        self.ask()
        return self.answer()

    def wait_for_all(self) -> None:
        """Return when every rank is here: the one that writes files is done with them."""
        if self._group is not None:
            dist.barrier(group=self._group)
