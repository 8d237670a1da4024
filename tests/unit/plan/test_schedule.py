"""The learning rate is what its formulas say, at every step of every kind of plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mslt_ds.config.sections import ScheduleConfig
from mslt_ds.plan.methods import build_plan
from mslt_ds.plan.schedule import decay_start, learning_rate, shape
from mslt_ds.recipe.loading import parse_recipe


def rates(plan=None, learning_rate_=1.0, layers=4, **schedule) -> list[float]:
    """The rate of every step; `plan` defaults to 10 steps of a full model."""
    config = parse_recipe(
        {
            "name": "run",
            "model": {"num_hidden_layers": layers},
            "plan": plan or {"method": "full", "total_steps": 10},
            "data": {"path": "store"},
            "train": {"global_batch_size": 8, "micro_batch_size": 8},
            "optimizer": {"learning_rate": learning_rate_},
            "schedule": schedule,
        }
    ).config
    built = build_plan(config)
    return [learning_rate(config, built, step) for step in range(built.total_steps)]


def approx(*values: float):
    return pytest.approx(list(values), rel=1e-12)


def test_linear():
    assert rates() == approx(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    assert rates(warmup_steps=5) == approx(0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2)
    assert rates(end_factor=0.5)[::5] == approx(1.0, 0.75)


def test_polynomial():
    assert rates(name="polynomial", power=2.0)[::5] == approx(1.0, 0.25)
    assert rates(name="polynomial") == rates(name="linear")
    assert rates(name="polynomial", power=2.0, end_factor=0.2)[5] == pytest.approx(0.4)


def test_constant():
    assert rates(name="constant", warmup_steps=2) == approx(0.5, *[1.0] * 9)


def test_wsd():
    got = rates(name="wsd", warmup_steps=2, decay_steps=4)
    assert got == approx(0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25)
    assert rates(name="wsd", decay_steps=10) == rates(name="linear")


def test_where_a_constant_rate_ends():
    schedule = ScheduleConfig(name="wsd", decay_steps=4)
    assert decay_start(schedule, 10) == 6
    assert [shape(schedule, step, 10) < 1.0 for step in (5, 6, 7)] == [False, False, True]
    assert decay_start(ScheduleConfig(name="wsd", decay_steps=4, restart=True), 10) is None
    assert decay_start(ScheduleConfig(name="linear"), 10) is None


def test_warmup_for_the_whole_training():
    assert rates(warmup_steps=10) == approx(*(step / 10 for step in range(1, 11)))


MSLT = {"method": "mslt", "num_stages": 2, "steps_per_stage": 4, "joint_steps": 2}


def test_stages_leave_the_schedule_alone():
    assert rates(plan=MSLT, warmup_steps=3) == rates(warmup_steps=3)


def test_restart_goes_through_the_shape_in_each_stage():
    got = rates(plan=MSLT, warmup_steps=2, restart=True)
    assert got == approx(*[0.5, 1.0, 1.0, 0.5] * 2, 0.5, 1.0)


def test_a_change_of_length_is_no_restart():
    plan = {"method": "full", "total_steps": 10, "long_sequence": {"share": 0.4}}
    for schedule in ({"restart": True}, {"restart": True, "name": "wsd", "decay_steps": 6}, {}):
        assert rates(plan=plan, **schedule) == rates(**schedule)


def test_custom_stages_have_a_factor_and_a_warmup_of_their_own():
    stages = [
        {"depth": 2, "steps": 4, "learning_rate_factor": 2.0},
        {"depth": 4, "steps": 6, "learning_rate_factor": 0.5, "warmup_steps": 4},
    ]
    plan = {"method": "custom", "stages": stages}
    assert rates(plan=plan, learning_rate_=0.1, name="constant") == approx(
        *[0.2] * 4, 0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05
    )


def test_a_stages_warmup_goes_on_at_another_length():
    stages = [{"depth": 4, "steps": 10, "warmup_steps": 8}]
    plan = {"method": "custom", "stages": stages}
    longer = plan | {"long_sequence": {"share": 0.5}}
    assert rates(plan=longer, name="constant") == rates(plan=plan, name="constant")


@given(
    st.integers(1, 40),
    st.sampled_from(["linear", "polynomial", "constant", "wsd"]),
    st.floats(0, 1),
    st.data(),
)
def test_rises_in_the_warmup_and_never_after_and_stays_in_bounds(total, name, end, data):
    schedule: dict = {"name": name, "warmup_steps": data.draw(st.integers(0, total - 1))}
    if name != "constant":
        schedule["end_factor"] = end
    if name == "wsd":
        schedule["decay_steps"] = data.draw(st.integers(1, total - schedule["warmup_steps"]))
    if name == "polynomial":
        schedule["power"] = data.draw(st.floats(0.1, 3))
    got = rates(plan={"method": "full", "total_steps": total}, **schedule)
    warmup = schedule["warmup_steps"]
    assert all(0 < rate <= 1 for rate in got)
    assert got[:warmup] == sorted(got[:warmup])
    assert got[warmup:] == sorted(got[warmup:], reverse=True)
    assert got[warmup] == 1.0
