"""Stopping together: at a step boundary all ranks agree to stop.

A scheduler's warning reaches some ranks a step earlier than others. A rank that stopped alone would
leave the others waiting in an all-reduce, so the flags are summed over all ranks in each step. This
all-reduce runs on gloo, asynchronously: it starts before the step's work and is read after it, so no
rank waits for it and the GPU isn't synchronised.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mslt_ds.distributed.signals import StopFlag

_LONGEST_WAIT = timedelta(days=1)  # the watchdog ends a wait for a rank that is gone


class StopRequest:
    """Tells all ranks if any rank's flag is set. Every rank makes the same calls in the same order."""

    def __init__(self, flag: StopFlag) -> None:
        self.flag = flag
        self._agreed = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None
        self._group: Any = None
        if dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)

    def ask(self) -> None:
        """Start the all-reduce of the flags."""
        self._agreed.fill_(self.flag.is_set)
        if self._group is not None:
            self._work = dist.all_reduce(self._agreed, group=self._group, async_op=True)

    def answer(self) -> bool:
        """Whether any rank's flag was set when it called `ask`; the same on all ranks, and so is the flag."""
        if self._work is not None:
            self._work.wait()
        if self._agreed.item():
            self.flag.set("another rank")
            return True
        return False

    def asked_now(self) -> bool:
        """`ask`, then `answer`."""
        self.ask()
        return self.answer()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block in which a stop waits until the ranks `ask`. A collective, at its beginning and end.

        Raises Stopped before and after it if the flag is set.
        """
        if self.asked_now():
            self.flag.release()
        self.flag.hold()
        yield  # after an exception it stays held, so that a signal doesn't hide the message
        # Rank 0 may still be writing what the others leave to it.
        self.wait_for_all()
        self.flag.release()

    def wait_for_all(self) -> None:
        """A barrier, for example until rank 0 has written its files."""
        if self._group is not None:
            dist.barrier(group=self._group)
