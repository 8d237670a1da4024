"""Writes what a run keeps on a thread, while the run goes on.

Jobs are written in the order in which they were handed over, so that a checkpoint appears only when
every model of the stages before it is there. A job holds its own copy of the numbers.

A disk that is full, read-only, slow or gone doesn't end the run. What couldn't be written stays in memory
and is tried again when the next checkpoint is handed over, which takes the place of an older one that isn't
written yet. Only if nothing could be written for `give_up_after` seconds does the run end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from mslt_ds.errors import EnvironmentProblem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Something to write."""

    name: str
    write: Callable[[], object]
    """Raises OSError where the disk fails. May be called again."""
    is_checkpoint: bool = False


class Writer:
    """Writes jobs on a thread of its own.

    give_up_after: seconds without a success after which EnvironmentProblem is raised
    """

    def __init__(self, give_up_after: float) -> None:
        self._give_up_after = give_up_after
        self._jobs: list[Job] = []  # not written yet; the first may be under way
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_busy = False
        self._trying_since: float | None = None  # since when nothing has been written
        self._problem: BaseException | None = None  # why the newest try failed

    @property
    def is_busy(self) -> bool:
        """Whether something is being written now."""
        return self._is_busy

    def write(self, job: Job) -> None:
        """Hand `job` over, and try again what failed before. Doesn't wait."""
        with self._lock:
            if job.is_checkpoint:
                started = int(self._is_busy)
                self._jobs[started:] = [j for j in self._jobs[started:] if not j.is_checkpoint]
            self._jobs.append(job)
            self._start()

    def check(self) -> None:
        """EnvironmentProblem where nothing could be written for too long; errors that are no disk's."""
        if self._problem is not None and not isinstance(self._problem, OSError):
            raise self._problem
        since = self._trying_since
        if since is not None and time.monotonic() - since >= self._give_up_after:
            raise EnvironmentProblem(
                f"checkpoint.give_up_after: nothing could be written for {time.monotonic() - since:,.0f} s "
                f"({self._reason()}); the checkpoints before are kept. Check the disk and start the same "
                "command again"
            )

    def wait(self, seconds: float, *, tries_again: bool = False) -> bool:
        """Wait for up to `seconds`. Whether nothing is being written any more. Raises what `check` does.

        tries_again: what has failed is tried again, until everything is written
        """
        self.check()
        if self._is_busy and self._thread is not None:
            self._thread.join(seconds)
        if self._is_busy or not (self._jobs and tries_again):
            return not self._is_busy
        self.check()
        time.sleep(min(seconds, self._give_up_after / 10))
        with self._lock:
            self._start()
        return False

    def drop(self) -> None:
        """Forget what isn't written. Only after `wait`."""
        self._jobs.clear()
        self._trying_since = self._problem = None

    def has(self, name: str) -> bool:
        """Whether the job `name` isn't written yet."""
        return any(job.name == name for job in self._jobs)

    @property
    def unwritten(self) -> str | None:
        """What isn't written, and why; None: everything is."""
        return f"{self._jobs[0].name}: {self._reason()}" if self._jobs else None

    def _reason(self) -> str:
        error = self._problem
        if error is None:
            return "the disk doesn't answer"
        return str(getattr(error, "strerror", None) or error)

    def _start(self) -> None:
        if self._is_busy:
            return
        self._is_busy = True
        if self._trying_since is None:
            self._trying_since = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="mslt-writer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._trying_since, self._is_busy = None, False
                    return
                job = self._jobs[0]
            try:
                job.write()
            except BaseException as error:  # the run's own thread raises what isn't the disk's
                self._problem = error
                if isinstance(error, OSError):
                    logger.warning(
                        "%s can't be written (%s); the run goes on and tries again at the next checkpoint",
                        job.name, self._reason(),
                    )  # fmt: skip
                self._is_busy = False
                return
            with self._lock:
                if self._problem is not None:
                    logger.warning("%s is written; the disk is back", job.name)
                self._problem = None
                self._jobs.remove(job)
                self._trying_since = time.monotonic()
