"""The guard's verdicts, step by step."""

from __future__ import annotations

import math
from typing import Any

from mslt_ds.config.sections import TrainConfig
from mslt_ds.data.loader import passing_over
from mslt_ds.guard import GoBack, StepGuard, StepResult


def settings(**changes) -> TrainConfig:
    return TrainConfig(global_batch_size=10, micro_batch_size=10, **changes)


def result(step: int, skipped: bool = False, **values: Any) -> StepResult:
    return StepResult(step, (10 * step, 10 * step + 10), skipped, **values)


def test_so_many_skipped_steps_in_a_row_and_no_fewer():
    guard = StepGuard(settings(max_skipped_steps=3))
    steps = [True, True, False, True, True, True]
    verdicts = [guard.observe(result(step, skipped)) for step, skipped in enumerate(steps)]
    assert verdicts[:5] == [None] * 5
    back = verdicts[5]
    assert isinstance(back, GoBack)
    assert back.step == 5 and back.instances == (30, 60)


def test_more_than_half_of_the_steps_although_no_two_in_a_row_are_too_many():
    def verdicts(pattern: list[bool]) -> list[GoBack | None]:
        guard = StepGuard(settings(max_skipped_steps=3))
        steps = enumerate(pattern * 20)
        return [guard.observe(result(step, skipped)) for step, skipped in steps]

    assert not any(verdicts([True, False]))  # half
    back = next(filter(None, verdicts([True, True, False])))
    assert back.step == 9 and back.instances == (0, 100)
    assert back.reason.startswith("7 of the last 10 steps were skipped")


def test_the_loss_scales_search_is_not_counted():
    guard = StepGuard(settings(max_skipped_steps=1))
    assert guard.observe(result(0, True, loss=1.0, scale_overflow=True)) is None
    assert guard.observe(result(1, True, loss=math.nan)) is not None


def test_reasons():
    assert result(0, True, loss=math.inf).reason == "the loss is inf"
    assert result(0, True, loss=2.0).reason == "the gradient isn't finite"
    assert "fp16" in result(0, True, loss=2.0, scale_overflow=True).reason


def test_a_spike_of_the_loss_or_the_gradient():
    for key in ("loss", "grad_norm"):
        guard = StepGuard(settings(spike_sigmas=6.0, spike_window=50))
        assert guard.needs_values
        values: dict[str, Any] = {}
        for step in range(40):
            values = {"loss": 2.0 + 0.01 * (step % 5), "grad_norm": 1.0 + 0.1 * (step % 3)}
            assert guard.observe(result(step, **values)) is None
        values[key] = 5.0
        back = guard.observe(result(40, **values))
        assert back is not None and back.instances == (400, 410)


def test_spikes_are_off_by_default_and_early_steps_say_nothing():
    guard = StepGuard(settings())
    assert not guard.needs_values
    guard = StepGuard(settings(spike_sigmas=1.0))
    assert guard.observe(result(0, loss=1.0, grad_norm=1.0)) is None
    assert guard.observe(result(1, loss=1e9, grad_norm=1e9)) is None


def test_instances_that_are_passed_over():
    gaps = ((30, 50), (60, 70))
    starts = [passing_over(start, gaps) for start in range(0, 70, 10)]
    assert starts == [0, 10, 20, 50, 70, 80, 90]
    assert passing_over(30, ((30, 40), (40, 50))) == 50
