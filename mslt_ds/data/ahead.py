"""Background threads that make batches ahead of training.

Threads are sufficient because the compiled code releases the interpreter lock. While training waits
for a batch, it logs a warning every 30 seconds, and after ten minutes the run ends, so that a lost
disk doesn't occupy a cluster for days. The threads are daemons: those of a ThreadPoolExecutor would
keep the process alive until the disk is back.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from mslt_ds.errors import DataError

Batch = TypeVar("Batch")
logger = logging.getLogger(__name__)

_BATCHES_AHEAD_PER_WORKER = 2
SLOW_SECONDS, GONE_SECONDS, CLOSE_SECONDS = 30.0, 600.0, 5.0
_SLOW = (
    "%s: waited %.0f s for the batch of step %d; is the disk slow? A copy on a local disk, "
    "or more data.num_workers, may help"
)


def work_ahead(
    make: Callable[[int], Batch],
    make_ahead: Callable[[int], None],
    steps: range,
    num_workers: int,
    *,
    place: str,
    device: torch.device,
) -> Iterator[Batch]:
    """make(step) for each of `steps`, in order, up to two steps ahead for each worker.

    make_ahead(step): prepares what later steps need; called from time to time, on a thread of its own
    num_workers: threads; with 0, one thread makes each batch on request
    place: where the data lies, for messages
    device: the device that the batches are for

    DataError if reading fails, or if a batch isn't ready after GONE_SECONDS.
    """

    def start_thread() -> None:
        if device.type == "cuda":  # otherwise pinning memory would initialize the first GPU as well
            torch.cuda.set_device(device)

    threads = _Threads(max(1, num_workers), "mslt-data", start_thread)
    # A thread of its own, so that no batch waits for it.
    ahead_thread = _Threads(1, "mslt-data-ahead", start_thread)
    pending: deque[tuple[int, Future[Batch]]] = deque()
    ahead: Future[None] | None = None
    try:
        for step in steps:
            if ahead is None or ahead.done():
                if ahead is not None:
                    ahead.result()
                ahead = ahead_thread.submit(_made, make_ahead, step, place)
            pending.append((step, threads.submit(_made, make, step, place)))
            if len(pending) > num_workers * _BATCHES_AHEAD_PER_WORKER:
                yield _result(*pending.popleft(), place)
        while pending:
            yield _result(*pending.popleft(), place)
    finally:
        threads.close()
        ahead_thread.close()


class _Threads:
    """Daemon threads that take submitted tasks in order."""

    def __init__(self, count: int, name: str, start: Callable[[], None]) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._start = start
        self._closed = False
        # For an iterator that is never closed: a thread that is still running when the interpreter
        # shuts down can abort the process.
        atexit.register(self.close)
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((future, lambda: function(*arguments)))
        return future

    def close(self) -> None:
        """Start no further task, and wait up to CLOSE_SECONDS for those that are running."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        self._start()
        while (task := self._tasks.get()) is not None and not self._closed:
            future, function = task
            try:
                future.set_result(function())
            except BaseException as error:  # raised again by the thread that waits for it
                future.set_exception(error)


def _made(make: Callable[[int], Batch], step: int, place: str) -> Batch:
    try:
        return make(step)
    except OSError as error:
        raise DataError(
            f"{place}: can't be read at step {step} ({error.strerror or error}); the checkpoints "
            "are kept: check the disk and start the same command again"
        ) from error


def _result(step: int, future: Future[Batch], place: str) -> Batch:
    """Wait for the batch, with a warning every SLOW_SECONDS."""
    waited = 0.0
    while True:
        try:
            return future.result(timeout=SLOW_SECONDS)
        except TimeoutError:
            if future.done():  # ready by now, or the TimeoutError was raised by the task itself
                return future.result()
        waited += SLOW_SECONDS
        if waited >= GONE_SECONDS:
            raise DataError(
                f"{place}: no batch for step {step} after {waited:.0f} s; the checkpoints are kept. "
                "Check the disk, or copy the store to a local one"
            )
        logger.warning(_SLOW, place, waited, step)
