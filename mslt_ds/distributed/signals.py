"""Orderly stopping: a signal sets a flag, and at a step boundary all ranks agree to stop.

A scheduler's warning reaches some ranks a step earlier than others. A rank that stopped alone would
leave the others waiting in an all-reduce, so the flags are summed over all ranks in each step. This
all-reduce runs on gloo, asynchronously: it starts before the step's work and is read after it, so no
rank waits for it and the GPU isn't synchronised.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

EXIT_CODE_STOPPED = 85
"""Exit code of a run that a signal stopped after writing a checkpoint. The same command resumes it."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """Is set by SIGTERM and SIGUSR1 once it is constructed. Construct it in the main thread."""

    def __init__(self) -> None:
        self.is_set = False
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def close(self) -> None:
        """Ignore both signals from now on, since the process is about to exit.

        The first rank that exits with EXIT_CODE_STOPPED makes srun send SIGTERM to the others. If
        one of them died of the signal during its exit, the orderly stop would count as a failure.
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True


class StopRequest:
    """Tells all ranks if any rank's flag is set. Every rank makes the same calls in the same order."""

    def __init__(self, flag: StopFlag) -> None:
        self._flag = flag
        self._agreed = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None
        self._group: Any = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None

    def ask(self) -> None:
        """Start the all-reduce of the flags."""
        self._agreed.fill_(self._flag.is_set)
        if self._group is not None:
            self._work = dist.all_reduce(self._agreed, group=self._group, async_op=True)

    def answer(self) -> bool:
        """Whether any rank's flag was set when it called `ask`; the same on all ranks."""
        if self._work is not None:
            self._work.wait()
        return bool(self._agreed.item())

    def asked_now(self) -> bool:
        """`ask`, then `answer`."""
        self.ask()
        return self.answer()

    def wait_for_all(self) -> None:
        """A barrier, for example until rank 0 has written its files."""
        if self._group is not None:
            dist.barrier(group=self._group)
