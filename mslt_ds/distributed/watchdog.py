"""A dead or silent rank ends the others, within a bounded time and with a line that names it.

The main thread may be blocked in a collective, and NCCL doesn't notice that a partner is gone. So each
rank tells the others once a second what it is doing (a heartbeat, through the store of the process
group), and a thread judges what it hears. `judge` is pure.

* A rank that isn't heard of for `train.hang_timeout_seconds` was stopped, killed or cut off.
* If all are heard of and none has moved on for that long, the one that the others wait for hangs: in a
  read, a GPU, a lock.
* After a library's error in a collective, a rank that isn't heard of for a few seconds is its cause.

What may take long (a first step, which compiles; a checkpoint, a stage's beginning) is given PATIENCE
times the time, and the index of an epoch, which is made of the whole text, INDEX_PATIENCE times. The thread
also writes the stacks of all threads where a step takes SLOW times the median.
"""

from __future__ import annotations

import faulthandler
import json
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from mslt_ds.distributed.signals import StopFlag, Stopped, end_process
from mslt_ds.errors import LostRank, report

PATIENCE, INDEX_PATIENCE = 6.0, 60.0
SLOW, SLOW_SECONDS = 10.0, 10.0
"""A step is slow that takes SLOW times the median, and SLOW_SECONDS at least."""
_BEAT_SECONDS = 1.0
_RANKS_PER_BEAT = 32  # with more, each beats less often
_SILENT_BEATS = 5.0
"""After an error in a collective, a rank that misses so many beats is gone."""
_OTHERS_WAIT_SECONDS = 3.0
_HEAR_BEATS = 2.5
"""After so many beats all others have heard what a rank says."""
_MOST_DUMPS = 20


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself."""

    host: str
    step: int = 0
    doing: str = "the start of the run"
    waits: bool = False  # for the other ranks, in a collective
    patience: float = PATIENCE  # how many times the usual time it may take
    moves: int = 0  # counts what it has begun
    beats: int = 0
    stop: str | None = None  # why it was told to stop


@dataclass(frozen=True)
class Heard:
    """A rank's last beat, and when it came and its `moves` last changed (seconds, monotonic)."""

    beat: Beat
    at: float
    moved: float


def judge(
    heard: Sequence[Heard],
    mine: Beat,
    now: float,
    timeout: float,
    *,
    read: float,
    silent_after: float | None = None,
) -> tuple[list[int], str] | None:
    """The ranks that the others can't wait for any longer, and why; None: all are well.

    heard: by rank
    mine: what this rank does now, which says how long it may wait
    read: when the beats were last read
    silent_after: seconds after which a rank is gone that isn't heard of, where a collective has failed
    """
    if silent_after is None:
        # What takes longer than this still doesn't keep its threads from reporting it.
        silent_after = timeout * min(mine.patience, PATIENCE)
    if now - read > silent_after:
        return [0], f"hasn't answered for {now - read:.0f} s, whose store all use"
    silent = [rank for rank, one in enumerate(heard) if now - one.at > silent_after]
    if silent:
        seconds = min(now - heard[rank].at for rank in silent)
        return silent, f"hasn't been heard of for {seconds:.0f} s"
    idle = now - max(one.moved for one in heard)
    if idle <= max(timeout * one.beat.patience for one in heard):
        return None
    last = min(one.beat.step for one in heard)
    behind = [rank for rank, one in enumerate(heard) if one.beat.step == last]
    hang = [rank for rank in behind if not heard[rank].beat.waits] or behind
    return hang, f"hasn't moved on for {idle:.0f} s"


class Watchdog:
    """Watches all ranks while its block runs. Every rank enters it, after joining the group.

    run_dir: where stacks are written
    """

    def __init__(self, flag: StopFlag, run_dir: Path, timeout: float) -> None:
        self._flag = flag
        self._folder = run_dir / "stacks"
        self._timeout = timeout
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._interval = _BEAT_SECONDS * max(1.0, self._world_size / _RANKS_PER_BEAT)
        self._mine = Beat(socket.gethostname())
        self._heard: list[Heard] = []
        self._read = time.monotonic()
        self._step_began: float | None = None
        self._step_seconds: deque[float] = deque(maxlen=100)
        self._dumps = 0
        self._failed, self._closed = threading.Event(), threading.Event()
        self._store: Any = None

    # ---- called by the main thread -----------------------------------------------------------

    def computing(self, step: int, *, first: bool) -> None:
        """A micro-batch of `step` begins. first: in a step that may compile"""
        if step != self._mine.step or self._step_began is None:
            now = time.monotonic()
            if self._step_began is not None:
                self._step_seconds.append(now - self._step_began)
            self._step_began = None if first else now
        self._begin(f"step {step}", step=step, waits=True, patience=PATIENCE if first else 1.0)

    def doing(self, what: str, patience: float = PATIENCE) -> None:
        """Something else begins, or goes on, which may take long."""
        self._step_began = None
        self._begin(what, waits=False, patience=patience)

    def waiting_for_data(self, step: int) -> None:
        """The batch of `step` is waited for."""
        self._begin(f"the batch of step {step}", waits=False, patience=PATIENCE)

    def _lost(self) -> LostRank | None:
        """After an error in a collective: the rank that has gone. Waits some seconds."""
        self._failed.set()
        end = time.monotonic() + (_SILENT_BEATS + 3) * self._interval
        while time.monotonic() < end:
            if (verdict := self._verdict(time.monotonic())) is not None:
                return self._error(*verdict)
            time.sleep(0.2)
        self._failed.clear()
        return None

    def _let_all_hear(self) -> None:
        """Wait until all ranks have been told to stop, or had the time to hear that this one was."""
        end = time.monotonic() + _HEAR_BEATS * self._interval
        while time.monotonic() < end and not all(
            one.beat.stop for rank, one in enumerate(self._heard) if rank != self._rank
        ):
            time.sleep(0.05)

    # ---- the threads -------------------------------------------------------------------------

    def __enter__(self) -> Watchdog:
        now = time.monotonic()
        self._heard = [Heard(self._mine, now, now)]
        if self._world_size > 1:
            # A connection of its own: another thread may wait for long on the group's.
            group_store: Any = dist.distributed_c10d._get_default_store()
            self._store = group_store.clone()
            self._store.set_timeout(timedelta(seconds=self._timeout))
            self._tell(self._mine)
            dist.barrier()
            self._heard = [Heard(beat, now, now) for beat in self._ask()]
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, name=f"mslt{work.__name__}", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """A library's error is LostRank where another rank is its cause."""
        try:
            if isinstance(error, RuntimeError) and self._world_size > 1:
                if self._flag.is_set and not self._flag.is_held:
                    raise Stopped from None  # as the others have, a moment before
                if (lost := self._lost()) is not None:
                    raise lost from None
            if isinstance(error, Stopped):
                self._let_all_hear()
        finally:
            self._closed.set()

    def _begin(self, doing: str, *, waits: bool, patience: float, step: int | None = None) -> None:
        mine = self._mine
        self._mine = replace(
            mine,
            doing=doing,
            waits=waits,
            patience=patience,
            step=mine.step if step is None else step,
            moves=mine.moves + 1,
        )

    def _exchange(self) -> None:
        """Tell, and hear. May block for ever on a store that doesn't answer."""
        beats = 0
        while not self._closed.wait(self._interval):
            beats += 1
            mine = replace(self._mine, beats=beats, stop=self._flag.reason)
            everyones = [mine]
            if self._store is not None:
                try:
                    self._tell(mine)
                    everyones = self._ask()
                except (RuntimeError, ValueError):  # the store is gone: `_read` reports it
                    continue
            self._hear(everyones, time.monotonic())

    def _tell(self, beat: Beat) -> None:
        self._store.set(f"mslt/beat/{self._rank}", json.dumps(asdict(beat)))

    def _ask(self) -> list[Beat]:
        """All ranks' last beats."""
        keys = [f"mslt/beat/{rank}" for rank in range(self._world_size)]
        return [Beat(**json.loads(value)) for value in self._store.multi_get(keys)]

    def _hear(self, everyones: Sequence[Beat], now: float) -> None:
        self._read = now
        for rank, (beat, before) in enumerate(zip(everyones, self._heard, strict=True)):
            if beat.beats != before.beat.beats:
                moved = now if beat.moves != before.beat.moves else before.moved
                self._heard[rank] = Heard(beat, now, moved)
            if beat.stop is not None and rank != self._rank and not self._closed.is_set():
                self._flag.set(f"rank {rank} ({beat.stop})")

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(self._interval / 2):
            now = time.monotonic()
            if now - looked > 5 * self._interval:
                # This process was stopped itself: it has heard of nobody meanwhile.
                self._heard = [Heard(one.beat, now, now) for one in self._heard]
                self._read = now
            looked = now
            self._dump_if_slow(now)
            if not self._failed.is_set() and (verdict := self._verdict(now)) is not None:
                self._end(*verdict)

    def _verdict(self, now: float) -> tuple[list[int], str] | None:
        silent_after = _SILENT_BEATS * self._interval if self._failed.is_set() else None
        return judge(
            self._heard, self._mine, now, self._timeout, read=self._read, silent_after=silent_after
        )

    def _dump_if_slow(self, now: float) -> None:
        began = self._step_began
        if began is None or len(self._step_seconds) < 5:
            return
        usual = statistics.median(self._step_seconds)
        if now - began > max(SLOW * usual, SLOW_SECONDS):
            self._step_began = None  # once a step
            self._dump(
                f"step {self._mine.step} takes {now - began:.0f} s, the median {usual:.2g} s"
            )

    def _dump(self, why: str) -> Path | None:
        """Append all threads' stacks to this rank's file; None where that isn't possible."""
        self._dumps += 1
        path = self._folder / f"rank_{self._rank}.txt"
        if self._dumps > _MOST_DUMPS:
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')}, {self._mine.doing}: {why}\n")
                file.flush()
                faulthandler.dump_traceback(file)
        except OSError:
            return None
        return path

    def _error(self, ranks: Sequence[int], why: str) -> LostRank:
        lost = self._heard[ranks[0]].beat
        more = f" (and ranks {', '.join(map(str, ranks[1:]))})" if len(ranks) > 1 else ""
        mine = self._mine
        error = LostRank(
            f"rank {ranks[0]} on {lost.host}{more} {why}; it was last at step {lost.step}, in "
            f"{lost.doing}, and rank {self._rank} waited for it in {mine.doing} "
            f"(train.hang_timeout_seconds: {self._timeout:g}). The same command goes on from the last "
            "checkpoint"
        )
        # All ranks come to the same end; one prints it.
        others = [rank for rank in range(self._world_size) if rank not in ranks]
        error.is_told = self._rank == min(others, default=0)
        return error

    def _end(self, ranks: Sequence[int], why: str) -> None:
        """End the process from here: its main thread may wait for ever."""
        error = self._error(ranks, why)
        path = self._dump(str(error))
        if not error.is_told:
            time.sleep(_OTHERS_WAIT_SECONDS)  # a launcher ends all once one has ended
        else:
            report(error, f" (rank {self._rank})")
            if path is not None:
                sys.stderr.write(f"the stacks of this rank's threads are in {path}\n")
        end_process(error.exit_code)
