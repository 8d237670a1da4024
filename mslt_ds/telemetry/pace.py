"""Estimates the time left for the stage and for the run.

Steps of different stages cost differently, so the run's time left is not the steps left times the
seconds of a step. The cost of a step is estimated as proportional to

    (depth + 2 x trainable layers) x seq_length x global_batch_size

since a layer's backward pass takes twice the arithmetic of its forward pass and frozen layers have no
backward pass (embeddings and heads are neglected). The estimate is used for later stages only; the
current stage is measured, by the median of its last log lines. A few slow steps, such as the first ones,
which compile, or those beside another job, don't change it.
"""

from __future__ import annotations

import statistics
from collections import deque

from mslt_ds.plan.flops import layer_passes
from mslt_ds.plan.stages import Plan, Stage

_LINES = 25  # whose median is the pace


def relative_step_cost(stage: Stage) -> float:
    """Cost of one of the stage's steps, in forward passes of one layer over one token position."""
    layers = layer_passes(stage.depth, stage.trainable_layers)
    return layers * stage.tokens_per_step


class Pace:
    """The median of the seconds per step over the last log lines of a stage."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stage: Stage | None = None
        self._step_seconds: deque[float] = deque(maxlen=_LINES)

    def update(self, step: int, step_seconds: float) -> tuple[float, float]:
        """Seconds left for the stage and for the run after `step` (from 0) took `step_seconds`."""
        stage = self._plan.stage_at(step)
        if stage is not self._stage:
            self._stage = stage
            self._step_seconds.clear()
        self._step_seconds.append(step_seconds)
        pace = statistics.median(self._step_seconds)
        stage_left = (stage.end_step - step - 1) * pace
        later = sum(
            other.steps * relative_step_cost(other) for other in self._plan.stages[stage.index :]
        )
        return stage_left, stage_left + later * pace / relative_step_cost(stage)
