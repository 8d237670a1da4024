"""The guard over the numbers of a run: which steps were skipped, and when the run has to go back.

A step whose loss or gradient isn't finite is never applied: the engine skips it, on every rank alike.
This module decides what follows. Pure: it takes what happened step by step, and returns a verdict.

* A few consecutive skipped steps are tolerated: the next batch may be sound.
* `train.max_skipped_steps` in a row mean that the weights or the data from there on are not. The run
  goes back to its last checkpoint and passes over those batches.
* So does a run that skips more than half of the last WINDOW times as many steps, in a row or not.
* With `train.spike_sigmas`, so does a step whose loss or gradient norm lies that many standard
  deviations above the mean of the last `train.spike_window` steps.

In fp16 a step is also skipped where the loss is finite and the scaled gradient overflows. This is how
a dynamic loss scale finds its value, so such steps are logged but not counted, until the scale can't
shrink any further. With a fixed scale they are counted.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mslt_ds.config.sections import TrainConfig
from mslt_ds.errors import DivergenceError

WINDOW = 4
"""Times `train.max_skipped_steps`: the steps of which no more than half may be skipped."""
_LEAST_HISTORY = 20
"""Steps before a mean and a standard deviation say anything."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, as all ranks agree on it.

    loss, grad_norm: None if they were not read
    instances: the first instance of the global batch and the one after its last
    """

    step: int
    instances: tuple[int, int]
    skipped: bool
    loss: float | None = None
    grad_norm: float | None = None
    scale_overflow: bool = (
        False  # with a dynamic loss scale: the loss is finite, its gradient isn't
    )

    @property
    def reason(self) -> str:
        """Why the step was skipped."""
        if self.scale_overflow:
            return "the scaled gradient overflows fp16"
        if self.loss is not None and not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        return "the gradient isn't finite"


@dataclass(frozen=True)
class GoBack:
    """The run has to go back, and to pass over `instances` of the stage's sequence."""

    step: int  # that showed it
    instances: tuple[int, int]
    reason: str


@dataclass
class StepGuard:
    """Watches the steps of one stage. `observe` takes every step, in order."""

    settings: TrainConfig
    _in_a_row: list[StepResult] = field(default_factory=list)
    _recent: deque[StepResult] = field(init=False)
    _losses: deque[float] = field(init=False)
    _grad_norms: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self._recent = deque(maxlen=WINDOW * self.settings.max_skipped_steps)
        self._losses = deque(maxlen=self.settings.spike_window)
        self._grad_norms = deque(maxlen=self.settings.spike_window)

    @property
    def needs_values(self) -> bool:
        """Whether `observe` reads the loss and the gradient norm of every step."""
        return self.settings.spike_sigmas is not None

    def observe(self, result: StepResult) -> GoBack | None:
        """What has to follow from a step; None: nothing."""
        if result.scale_overflow:
            return None
        self._recent.append(result)
        if result.skipped:
            self._in_a_row.append(result)
            if len(self._in_a_row) >= self.settings.max_skipped_steps:
                skipped, where = self._in_a_row, "steps in a row"
            else:
                skipped = [one for one in self._recent if one.skipped]
                where = f"of the last {len(self._recent)} steps"
                if 2 * len(skipped) <= WINDOW * self.settings.max_skipped_steps:
                    return None
            return GoBack(
                result.step,
                (skipped[0].instances[0], result.instances[1]),
                f"{len(skipped)} {where} were skipped, the last because {result.reason}",
            )
        self._in_a_row.clear()
        for name, value, history in (
            ("loss", result.loss, self._losses),
            ("gradient norm", result.grad_norm, self._grad_norms),
        ):
            if self.settings.spike_sigmas is None or value is None:
                continue
            if (sigmas := _sigmas(value, history)) > self.settings.spike_sigmas:
                return GoBack(
                    result.step,
                    result.instances,
                    f"the {name} {value:.4g} lies {sigmas:.1f} standard deviations above the mean "
                    f"of the last {len(history)} steps",
                )
            history.append(value)
        return None


def check_rollbacks(rollbacks: Sequence[GoBack], allowed: int) -> None:
    """DivergenceError where there are more `rollbacks` than `allowed`."""
    if len(rollbacks) <= allowed:
        return
    found = "".join(
        f"  step {back.step}, instances {back.instances[0]} to {back.instances[1] - 1}: {back.reason}\n"
        for back in rollbacks
    )
    raise DivergenceError(
        f"train.max_rollbacks: {allowed}, and the run diverged again:\n{found}"
        "All checkpoints are sound. Lower optimizer.learning_rate, lengthen schedule.warmup_steps, or "
        "look at the text (mslt-ds inspect --instance)"
    )


def _sigmas(value: float, history: deque[float]) -> float:
    """Standard deviations of `history` by which `value` lies above its mean; 0 for a short one."""
    if len(history) < _LEAST_HISTORY:
        return 0.0
    deviation = statistics.stdev(history)
    excess = value - statistics.fmean(history)
    if deviation == 0.0:
        return math.inf if excess > 0 else 0.0
    return excess / deviation
