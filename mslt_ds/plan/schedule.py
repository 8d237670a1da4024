"""The learning rate of each step: a pure function of recipe, plan and step.

The schedule has no state that a checkpoint would have to hold or a stage boundary could lose. The
rate of step s is a product,

    optimizer.learning_rate x shape(s) x the stage's learning_rate_factor x the stage's own warm-up

Shapes, for T steps of which the first w warm up, step s from 0, p = (s - w) / (T - w), e = end_factor:

    warm-up      (s + 1) / w                     while s < w
    linear       e + (1 - e)(1 - p)              BERT's and LAMB's
    polynomial   e + (1 - e)(1 - p)^power
    constant     1
    wsd          1, then over the last decay_steps linearly to e   (Hu et al. 2024, "MiniCPM",
                                                  section 4: warm-up, stable, decay)

The rate never reaches e, which would be the rate of step T. `schedule.restart` applies the shape to
each stage anew. A stage that only changes the sequence length of the stage before continues its
shape. The batch size of a stage does not enter.
"""

from __future__ import annotations

from mslt_ds.config.sections import RunConfig, ScheduleConfig
from mslt_ds.plan.stages import Plan


def learning_rate(config: RunConfig, plan: Plan, step: int) -> float:
    """The learning rate of global step `step` (0-based, below plan.total_steps)."""
    stage = plan.stage_at(step)
    start, end = plan.segment_at(step)
    if config.schedule.restart:
        factor = shape(config.schedule, step - start, end - start)
    else:
        factor = shape(config.schedule, step, plan.total_steps)
    return (
        config.optimizer.learning_rate
        * factor
        * stage.learning_rate_factor
        * _warmup(step - start, stage.warmup_steps)
    )


def decay_start(schedule: ScheduleConfig, total_steps: int) -> int | None:
    """The first step of a run's decay where a part at a constant rate comes before it; None where none does,
    or one in each stage."""
    start = _decay_start(schedule, total_steps)
    return start if start > schedule.warmup_steps and not schedule.restart else None


def shape(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor in (0, 1] of step `step` (0-based) of `total_steps`."""
    if step < schedule.warmup_steps:
        return _warmup(step, schedule.warmup_steps)
    start = _decay_start(schedule, total_steps)
    if step < start or schedule.name == "constant":
        return 1.0
    remaining = (total_steps - step) / (total_steps - start)
    # The power is 1 unless the schedule is polynomial (recipe/rules.py).
    return schedule.end_factor + (1 - schedule.end_factor) * remaining**schedule.power


def _decay_start(schedule: ScheduleConfig, total_steps: int) -> int:
    """The step with which the decay begins: that after the warm-up but with `wsd`."""
    if schedule.decay_steps is None:
        return schedule.warmup_steps
    return total_steps - schedule.decay_steps


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
