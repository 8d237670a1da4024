"""What a model is trained to predict."""

from __future__ import annotations

from dataclasses import dataclass

from mslt_ds.config.sections import DataConfig


@dataclass(frozen=True)
class Objective:
    losses: tuple[str, ...]


def objective_of(data: DataConfig) -> Objective:
    pair = data.sentence_objective
    return Objective(("mlm",) if pair is None else ("mlm", pair))
