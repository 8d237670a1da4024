"""The progress of a grid: a bar on a terminal, plain lines elsewhere.

The remaining time is estimated from the work that this process has done. A cell's work is the amount
of text that it reads, so large tasks count for more than small ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mslt_ds.durations import duration
from mslt_ds.telemetry.progress import PLAIN_INTERVAL_SECONDS


class GridProgress:
    """Counts finished work and prints cells as they end. A context manager.

    cells: the number of cells to do
    work: their total work, in any unit
    """

    def __init__(
        self,
        cells: int,
        work: float,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._cells, self._work, self._clock = cells, work, clock
        self._done_cells, self._done_work = 0, 0.0
        self._began = self._due = clock()
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=work, text="")

    def __enter__(self) -> GridProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line that stays above the bar."""
        self._console.print(text, markup=False)
        self._console.file.flush()  # otherwise lines are buffered in a pipe or a file

    def step(self, name: str, share: float, work: float, text: str) -> None:
        """Report that `share` (0 to 1) of a cell's `work` is done."""
        where = f"run {self._done_cells + 1}/{self._cells}  {name}"
        done = self._done_work + share * work
        status = f"{text}  {self.time_left(done)} left"
        self._bar.update(self._task, description=where, completed=done, text=status)
        if not self._live and self._clock() >= self._due:
            self._due = self._clock() + PLAIN_INTERVAL_SECONDS
            self.say(f"{where}  {share:.0%}  {status}")

    def end(self, work: float, text: str) -> None:
        """Report that a cell of this `work` has ended."""
        self._done_cells += 1
        self._done_work += work
        left = self.time_left(self._done_work)
        self._bar.update(self._task, completed=self._done_work)
        self.say(f"run {self._done_cells}/{self._cells}  {text}  {left} left")

    def time_left(self, done: float) -> str:
        """The estimated time for the work after `done`, at the pace so far."""
        seconds = self._clock() - self._began
        return duration(seconds * (self._work - done) / done) if done > 0 else "?"
