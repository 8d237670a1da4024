"""Stopping in good order: a signal sets a flag, and at a step boundary all ranks agree to stop.

A scheduler's warning reaches some ranks a step earlier than others; whoever stopped alone would
leave the rest waiting in an all-reduce. So the flags are summed over the ranks once a step, on gloo
and asynchronously: started before the step's work and read after it, no rank waits for it, and the
GPU is not asked.
"""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

EXIT_CODE_STOPPED = 85
"""Exit code of a run that was told to stop and wrote a checkpoint: start the same command again."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether any rank was told to stop. Install it once, in the main thread."""

    def __init__(self) -> None:
        self._told = False
        self._agreed = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None
        self._group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def begin_step(self) -> None:
        """Start asking the other ranks. Every rank has to call it before each step."""
        self._agreed.fill_(self._told)
        if self._group is not None:
            self._work = dist.all_reduce(self._agreed, group=self._group, async_op=True)

    def end_step(self) -> bool:
        """True, on all ranks at the same step, once any had been told before `begin_step`."""
        if self._work is not None:
            self._work.wait()
        return bool(self._agreed.item())
