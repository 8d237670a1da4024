"""The time left is exact for equal stages and weighs the stages to come by their arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mslt_ds.durations import duration
from mslt_ds.plan.stages import Plan, Stage
from mslt_ds.telemetry.pace import Pace, relative_step_cost


def stage(index: int, depth: int, trainable: int, start: int, steps: int, seq_length=128) -> Stage:
    return Stage(
        index=index,
        depth=depth,
        trainable_layers=trainable,
        train_embeddings=trainable == depth,
        steps=steps,
        start_step=start,
        first_instance=4 * start,
        seq_length=seq_length,
        micro_batch_size=4,
        global_batch_size=4,
        masked_lm_prob=0.15,
        init="keep",
    )


def test_equal_stages_take_equal_time():
    plan = Plan((stage(1, 4, 4, 0, 100), stage(2, 4, 4, 100, 50)))
    stage_left, run_left = Pace(plan).update(9, 0.5)
    assert stage_left == pytest.approx(90 * 0.5)
    assert run_left == pytest.approx(140 * 0.5)


def test_stages_to_come_are_weighed_by_their_cost():
    first, joint = stage(1, 2, 2, 0, 10), stage(2, 8, 8, 10, 10, seq_length=256)
    assert relative_step_cost(joint) == 8 * relative_step_cost(first)
    _, run_left = Pace(Plan((first, joint))).update(9, 1.0)
    assert run_left == pytest.approx(10 * 8.0)


def test_a_larger_batch_takes_proportionally_longer():
    first = stage(1, 2, 2, 0, 10)
    second = replace(stage(2, 2, 2, 10, 10), global_batch_size=12)
    _, run_left = Pace(Plan((first, second))).update(9, 1.0)
    assert run_left == pytest.approx(10 * 3.0)


def test_frozen_layers_cost_a_third():
    assert relative_step_cost(stage(1, 3, 0, 0, 1)) * 3 == relative_step_cost(stage(1, 3, 3, 0, 1))


def test_a_new_stage_forgets_the_pace_of_the_one_before():
    pace = Pace(Plan((stage(1, 2, 2, 0, 10), stage(2, 4, 2, 10, 10))))
    for step in range(10):
        pace.update(step, 1.0)
    assert pace.update(10, 3.0) == (pytest.approx(27.0), pytest.approx(27.0))


def test_a_few_slow_steps_change_nothing():
    pace = Pace(Plan((stage(1, 2, 2, 0, 1001),)))
    for step in range(20):
        pace.update(step, 1.0)
    for step in range(20, 25):
        pace.update(step, 60.0)
    assert pace.update(25, 60.0)[0] == pytest.approx(975 * 1.0)


def test_a_lasting_change_is_followed():
    pace = Pace(Plan((stage(1, 2, 2, 0, 1001),)))
    for step in range(100):
        pace.update(step, 1.0 if step < 50 else 2.0)
    assert pace.update(100, 2.0)[0] == pytest.approx(900 * 2.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (42.4, "42 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7805, "2 h 10 min"),
        (100_800, "1 d 04 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
