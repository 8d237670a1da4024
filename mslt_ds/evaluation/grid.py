"""The grid of an evaluation: the cells of a recipe and its tasks. All functions are pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mslt_ds.shard import Shard


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run."""

    task: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """The cell's name in file names. The rate is written with the fewest digits that are exact."""
        return f"{self.task}_{self.learning_rate!r}_{self.seed}"


def make_cells(
    work: Mapping[str, float], learning_rates: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:
    """All cells of the tasks in `work`, the most work first, so that shards get similar amounts.

    work: the work of one run of each task, in any unit
    """
    tasks = sorted(work, key=lambda task: -work[task])
    return [Cell(task, rate, seed) for task in tasks for rate in learning_rates for seed in seeds]


def share(cells: Sequence[Cell], shard: Shard) -> list[Cell]:
    """The shard's cells."""
    return [cell for index, cell in enumerate(cells) if shard.takes(index)]
