"""Values by stage: lists, ramps, and the instances that stages of different batches take."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mslt_ds.config.sections import Ramp
from mslt_ds.errors import RecipeError
from mslt_ds.plan import by_stage
from mslt_ds.plan.stages import Plan, held_out
from mslt_ds.recipe.loading import Recipe, parse_recipe

MSLT = {"method": "mslt", "num_stages": 4, "steps_per_stage": 100, "joint_steps": 50}
MASKED = {"first": 0.3, "last": 0.15}


def recipe_of(plan: dict[str, Any], **changes: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "run",
            "model": {"num_hidden_layers": 12},
            "plan": plan,
            "data": {"path": "store"},
            "train": {"global_batch_size": 64, "micro_batch_size": 16},
            "optimizer": {"learning_rate": 1e-3},
        }
        | changes
    )


def plan_of(plan: dict[str, Any], **changes: Any) -> Plan:
    return recipe_of(plan, **changes).plan


def column(plan: Plan, name: str) -> list[Any]:
    return [getattr(stage, name) for stage in plan.stages]


def refused(plan: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(RecipeError) as error:
        recipe_of(plan, **changes)
    (line,) = str(error.value).splitlines()
    return line


def test_without_the_keys_all_stages_have_the_recipes_own_values():
    plan = plan_of(MSLT)
    assert column(plan, "global_batch_size") == [64] * 5
    assert column(plan, "masked_lm_prob") == [0.15] * 5
    assert column(plan, "first_instance") == [0, 6400, 12800, 19200, 25600]


def test_a_list_has_a_value_for_each_stage_the_joint_one_included():
    sizes, probs = [32, 32, 64, 96, 128], [0.3, 0.3, 0.2, 0.2, 0.15]
    plan = plan_of(MSLT | {"global_batch_size": sizes, "masked_lm_prob": probs})
    assert column(plan, "global_batch_size") == sizes
    assert column(plan, "masked_lm_prob") == probs
    assert column(plan, "first_instance") == [0, 3200, 6400, 12800, 22400]


def test_a_ramp_is_linear_over_the_stages():
    ramps = {"global_batch_size": {"first": 1024, "last": 4096}, "masked_lm_prob": MASKED}
    plan = plan_of(MSLT | ramps)
    # 1792, 2560 and 3328, rounded to multiples of 1024.
    assert column(plan, "global_batch_size") == [1024, 2048, 3072, 3072, 4096]
    assert column(plan, "masked_lm_prob") == [0.3, 0.2625, 0.225, 0.1875, 0.15]
    stacking = plan_of({"method": "stacking", "total_steps": 100} | ramps)
    assert column(stacking, "global_batch_size") == [1024, 3072, 4096]


def test_full_takes_a_list_of_one_value():
    full = {"method": "full", "total_steps": 10}
    plan = plan_of(full | {"global_batch_size": [32], "masked_lm_prob": [0.4]})
    assert column(plan, "global_batch_size") == [32]
    assert column(plan, "masked_lm_prob") == [0.4]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (
            MSLT | {"global_batch_size": [64] * 4},
            [
                "plan.global_batch_size: 4 values",
                "mslt makes 5 stages with the joint stage",
                "ramp",
            ],
        ),
        (
            MSLT | {"joint_steps": 0, "masked_lm_prob": [0.15]},
            ["plan.masked_lm_prob: 1 value,", "4 stages;", "null for data.masked_lm_prob 0.15"],
        ),
        (
            MSLT | {"method": "full", "global_batch_size": [64] * 5},
            ["5 values", "full makes 1 stage;", "1 value, or null for train.global_batch_size 64"],
        ),
        (
            MSLT | {"method": "full", "masked_lm_prob": MASKED},
            ["plan.masked_lm_prob: a ramp from 0.3 to 0.15", "full makes 1 stage;", "null"],
        ),
        (
            {
                "method": "custom",
                "stages": [{"depth": 12, "steps": 1}],
                "global_batch_size": [64],
            },
            ["plan.global_batch_size: given", "custom", "plan.stages", "leave it out"],
        ),
        (
            MSLT | {"global_batch_size": [64, 64, 64, 64, 40]},
            ["plan.global_batch_size: 40 in stage 5", "train.micro_batch_size 16", "32 or 48"],
        ),
        (
            MSLT | {"global_batch_size": {"first": 24, "last": 32}},
            ["plan.global_batch_size: 24 in stage 1", "train.micro_batch_size 16"],
        ),
        (
            {
                "method": "custom",
                "stages": [
                    {"depth": 12, "steps": 1},
                    {"depth": 12, "steps": 1, "global_batch_size": 72, "micro_batch_size": 10},
                ],
            },
            ["plan.stages.1.global_batch_size: 72 in stage 2", "plan.stages.1.micro_batch_size 10"],
        ),
        (
            MSLT | {"global_batch_size": 64},
            ["plan.global_batch_size: 64;", "a list", "a section with first and last"],
        ),
        (
            MSLT | {"global_batch_size": [64, 64, 0, 64, 64]},
            ["plan.global_batch_size.2: 0; it has to be a number of at least 1"],
        ),
        (MSLT | {"masked_lm_prob": {"first": 0.3}}, ["plan.masked_lm_prob.last: missing"]),
        (
            MSLT | {"masked_lm_prob": MASKED | {"lst": 0.1}},
            ["plan.masked_lm_prob.lst: unknown key; did you mean plan.masked_lm_prob.last?"],
        ),
        (
            MSLT | {"masked_lm_prob": {"first": 0.3, "last": 1.5}},
            ["plan.masked_lm_prob.last: 1.5; it has to be a number of at most 1"],
        ),
    ],
)
def test_refused(plan, words):
    line = refused(plan)
    assert all(word in line for word in words), line


def test_custom_stages_have_their_own():
    stages = [
        {"depth": 6, "steps": 10, "global_batch_size": 32, "masked_lm_prob": 0.25},
        {"depth": 12, "steps": 10},
        {"depth": 12, "steps": 10, "seq_length": 256, "global_batch_size": 16},
        {"depth": 12, "steps": 10, "global_batch_size": 96},
    ]
    plan = plan_of({"method": "custom", "stages": stages})
    assert column(plan, "global_batch_size") == [32, 64, 16, 96]
    assert column(plan, "masked_lm_prob") == [0.25, 0.15, 0.15, 0.15]
    assert column(plan, "first_instance") == [0, 320, 0, 960]


def test_the_halves_of_a_split_stage_share_its_values():
    long = {"share": 0.05, "micro_batch_size": 4}
    sizes = [16, 32, 48, 64, 80]
    plan = plan_of(
        MSLT | {"global_batch_size": sizes, "masked_lm_prob": MASKED, "long_sequence": long}
    )
    assert column(plan, "continues") == [False] * 5 + [True]
    assert column(plan, "global_batch_size") == [*sizes, 80]
    assert column(plan, "masked_lm_prob")[-2:] == [0.15, 0.15]
    assert column(plan, "first_instance")[-1] == 0


def test_the_world_is_checked_stage_by_stage():
    recipe = recipe_of(MSLT | {"global_batch_size": [32, 64, 64, 64, 128]})
    recipe.check_world(2)
    with pytest.raises(RecipeError) as error:
        recipe.check_world(4)
    (line,) = str(error.value).splitlines()
    assert line == (
        "plan.global_batch_size: 32 in stage 1 is not a multiple of 64 "
        "(4 ranks x train.micro_batch_size 16); choose 64, or other ranks or micro-batches"
    )


def test_held_out_text_is_the_same_for_all_stages():
    """And its batches have to be divisible, whether a stage has this size or not."""
    plan = MSLT | {"global_batch_size": {"first": 32, "last": 128}, "masked_lm_prob": MASKED}
    recipe = recipe_of(plan, evaluation={"instances": 100})
    evaluated = [held_out(recipe.config, stage) for stage in recipe.plan.stages]
    for stage in evaluated:
        assert (stage.first_instance, stage.steps, stage.global_batch_size) == (0, 2, 64)
        assert stage.masked_lm_prob == 0.15
    train = {"global_batch_size": 40, "micro_batch_size": 16}
    recipe_of(plan, train=train)
    line = refused(plan, train=train, data={"path": "store", "eval_path": "held_out"})
    assert line.startswith("train.global_batch_size: 40 is not a multiple of")


def test_the_most_predictions_follow_the_stages_share():
    config = recipe_of(MSLT).config
    assert config.max_predictions(128, 0.15) == config.max_predictions(128) == 20
    assert [config.max_predictions(128, prob) for prob in (0.3, 0.075, 1.0)] == [40, 10, 128]
    data = {"path": "store", "max_predictions_per_seq": 19}
    config = recipe_of(MSLT, data=data).config
    assert [config.max_predictions(128, prob) for prob in (0.15, 0.3, 1.0)] == [19, 38, 127]
    assert config.max_predictions(512, 0.3) == 152


def test_values_by_stage_read_back_equal():
    recipe = recipe_of(MSLT | {"global_batch_size": [64] * 5, "masked_lm_prob": MASKED})
    assert parse_recipe(recipe.config.model_dump(mode="json")) == recipe


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(2, 30))
def test_sizes_of_a_ramp_go_wherever_its_ends_go(first, last, num_stages):
    sizes = by_stage.batch_sizes(Ramp(first=first, last=last), num_stages)
    unit = math.gcd(first, last)
    assert (len(sizes), sizes[0], sizes[-1]) == (num_stages, first, last)
    assert sizes == sorted(sizes, reverse=first > last)
    for i, size in enumerate(sizes):
        assert size > 0 and size % unit == 0
        exact = first + (last - first) * i / (num_stages - 1)
        assert abs(size - exact) <= unit / 2 + 1e-6


@st.composite
def recipes(draw) -> Recipe:
    """Any method with any batch sizes, masked shares and lengths."""
    method = draw(st.sampled_from(["mslt", "stacking", "full", "custom"]))
    sizes = st.integers(1, 6).map(lambda n: 16 * n)
    probs = st.sampled_from([0.1, 0.15, 0.3])
    plan: dict[str, Any] = {"method": method}
    if method == "custom":
        stage = st.fixed_dictionaries(
            {
                "depth": st.just(12),
                "steps": st.integers(1, 9),
                "seq_length": st.sampled_from([128, 64, 256]),
                "global_batch_size": st.none() | sizes,
                "masked_lm_prob": st.none() | probs,
            }
        )
        plan["stages"] = draw(st.lists(stage, min_size=1, max_size=6))
    else:
        num_stages = {"mslt": 4, "stacking": 3, "full": 1}[method]
        plan |= {"num_stages": num_stages, "steps_per_stage": draw(st.integers(5, 30))}
        if method == "mslt" and draw(st.booleans()):
            plan["joint_steps"] = draw(st.integers(8, 20))
            num_stages += 1
        for key, values in (("global_batch_size", sizes), ("masked_lm_prob", probs)):
            exact = st.lists(values, min_size=num_stages, max_size=num_stages)
            ramp = st.fixed_dictionaries({"first": values, "last": values})
            plan[key] = draw(st.none() | (exact if num_stages == 1 else exact | ramp))
    if method in ("stacking", "full") or plan.get("joint_steps"):
        share = 0.05 if method == "mslt" else draw(st.floats(0.2, 1.0))  # of 5 steps or more
        plan["long_sequence"] = draw(st.none() | st.just({"share": share}))
    return recipe_of(plan)


@given(recipes())
def test_the_instances_of_the_stages_tile_each_sequence(recipe):
    """At each length, stages take one instance after another, from 0, without gap or overlap."""
    steps: dict[int, list[range]] = {}
    for stage in recipe.plan.stages:
        size = stage.global_batch_size
        steps.setdefault(stage.seq_length, []).extend(
            range(start, start + size)
            for start in (stage.first_instance + step * size for step in range(stage.steps))
        )
        assert stage.end_instance == steps[stage.seq_length][-1].stop
    for ranges in steps.values():
        taken = [instance for each in ranges for instance in each]
        assert taken == list(range(len(taken)))
