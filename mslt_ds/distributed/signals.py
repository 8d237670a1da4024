"""Requests to stop: by a signal, by the end of the launcher, or by another rank.

A thread watches for all three, since Python runs a signal's handler only between two of the main
thread's own instructions, and the main thread may be waiting in a collective. What follows depends on
what there is to lose:

* Where the disk holds all that there is to save (while a run is prepared, at a stage's beginning, in the
  export), the process ends at once: by an exception, which cleans up, or where that doesn't help in
  time, without.
* While steps are made (from `StopFlag.hold` to `release`), only the flag is set. At the end of the step
  all ranks agree to save and to stop (`agreement.StopRequest`).
* A second Ctrl-C ends the process in any case.

Nothing here imports torch, which takes seconds, so that the watch begins before that.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from mslt_ds.distributed.launchers import Launchers

EXIT_CODE_STOPPED = 85
"""Exit code of a run that was told to stop and whose state is saved. The same command resumes it."""
EXIT_CODE_INTERRUPTED = 128 + signal.SIGINT

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_LOOK_SECONDS = 1.0  # at the launchers
_SECOND_INTERRUPT_SECONDS = 1.0
"""A launcher passes on the Ctrl-C that the terminal has sent to all: one this soon isn't a second."""
_CLEAN_UP_SECONDS = 10.0


class Stopped(SystemExit):
    """Raised in the main thread where a stop finds nothing to save."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE_STOPPED)


class StopFlag:
    """Watches for reasons to stop once it is constructed. Construct it in the main thread."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why the process has to stop, for messages; None: it doesn't."""
        self.is_held = False
        self._raised = self._closed = False
        self._deadline = math.inf  # of an end that cleans up
        self._interrupted: float | None = None  # when
        self._launchers = Launchers()
        self._received, self._wake_up = socket.socketpair()
        self._wake_up.setblocking(False)
        signal.set_wakeup_fd(self._wake_up.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._handle)
        threading.Thread(target=self._watch, name="mslt-stop", daemon=True).start()

    @property
    def is_set(self) -> bool:
        return self.reason is not None

    def set(self, reason: str) -> None:
        """Tell the main thread to stop. From any thread."""
        if self.reason is None and not self._closed:
            self.reason = reason
            # So that the main thread handles it, where it isn't inside of compiled code.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def hold(self) -> None:
        """From now on there is something to lose: a stop only sets the flag."""
        self.is_held = True

    def release(self) -> None:
        """From now on there is nothing to lose. Raises Stopped where the flag is set."""
        self.is_held = False
        self._stop_unless_held()

    def close(self) -> None:
        """Ignore all signals from now on, since the process is about to exit.

        The first rank that exits with EXIT_CODE_STOPPED makes srun send SIGTERM to the others. If
        one of them died of the signal during its exit, the orderly stop would count as a failure.
        """
        self._closed = True
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # The thread may not have read the signal yet.
        self.reason = self.reason or signal.Signals(number).name
        self._stop_unless_held()

    def _stop_unless_held(self) -> None:
        if self.is_set and not self.is_held and not self._raised:
            self._raised = True
            raise Stopped

    def _watch(self) -> None:
        self._received.settimeout(_LOOK_SECONDS)
        while self._raised or not self._closed:
            numbers = b""
            with suppress(TimeoutError):
                numbers = self._received.recv(64)
            now = time.monotonic()
            for number in numbers:
                if number == signal.SIGINT and self._is_second_interrupt(now):
                    end_process(EXIT_CODE_INTERRUPTED)
                self.reason = self.reason or signal.Signals(number).name
            if not self.is_set and (name := self._launchers.ended()) is not None:
                self.set(f"the end of its launcher ({name})")
            if not self.is_set or self.is_held:
                self._deadline = math.inf
            elif self._deadline == math.inf:
                self._deadline = now + _CLEAN_UP_SECONDS
            elif now > self._deadline:
                end_process(EXIT_CODE_STOPPED)

    def _is_second_interrupt(self, now: float) -> bool:
        first, self._interrupted = self._interrupted, self._interrupted or now
        return first is not None and now - first > _SECOND_INTERRUPT_SECONDS


def end_process(code: int) -> NoReturn:
    """End the process at once, from any thread."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)
