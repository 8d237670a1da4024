"""The plan: what each method makes of a recipe, and what holds for all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import RecipeError
from mslt_ds.plan.methods import build_plan
from mslt_ds.plan.stages import Plan
from mslt_ds.recipe.loading import parse_recipe
from mslt_ds.recipe.rules import plan_warnings


def config_of(
    layers: int = 12, train: dict | None = None, model: dict | None = None, **plan
) -> RunConfig:
    return parse_recipe(
        {
            "name": "run",
            "model": {"num_hidden_layers": layers} | (model or {}),
            "plan": plan,
            "data": {"path": "store"},
            "train": {"global_batch_size": 64, "micro_batch_size": 16} | (train or {}),
            "optimizer": {"learning_rate": 1e-3},
        }
    ).config


def plan_of(layers: int = 12, **plan) -> Plan:
    return build_plan(config_of(layers, **plan))


def column(plan: Plan, name: str) -> list:
    return [getattr(stage, name) for stage in plan.stages]


def test_mslt_is_the_papers():
    plan = plan_of(24, method="mslt", num_stages=4, steps_per_stage=200_000, joint_steps=200_000)
    assert plan.total_steps == 1_000_000
    assert column(plan, "index") == [1, 2, 3, 4, 5]
    assert column(plan, "depth") == [6, 12, 18, 24, 24]
    assert column(plan, "trainable_layers") == [6, 6, 6, 6, 24]
    assert column(plan, "frozen_layers") == [0, 6, 12, 18, 0]
    assert column(plan, "train_embeddings") == [True, False, False, False, True]
    assert column(plan, "init") == ["fresh", "copy_top", "copy_top", "copy_top", "keep"]
    assert column(plan, "steps") == [200_000] * 5
    assert column(plan, "start_step") == [0, 200_000, 400_000, 600_000, 800_000]


def albert(groups: int) -> dict:
    return {"family": "albert", "num_hidden_groups": groups}


def test_albert_is_staged_by_whole_groups():
    """The same stages as a BERT's, as long as none cuts a group."""
    bert = plan_of(method="mslt", num_stages=2, total_steps=100, joint_share=0.2)
    for groups in (2, 4, 6, 12):
        config = config_of(
            model=albert(groups), method="mslt", num_stages=2, total_steps=100, joint_share=0.2
        )
        assert build_plan(config) == bert
    stacking = config_of(model=albert(4), method="stacking", total_steps=400)
    assert column(build_plan(stacking), "depth") == [3, 6, 12]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"method": "mslt", "num_stages": 4, "total_steps": 9}, ["plan.num_stages: 4", "1 or 3"]),
        ({"method": "mslt", "total_steps": 9}, ["plan.num_stages: missing", "1 or 3"]),
        ({"method": "stacking", "total_steps": 9}, ["model.num_hidden_groups: 3", "multiple of 4"]),
        (
            {"method": "custom", "stages": [{"depth": 6, "steps": 1}, {"depth": 12, "steps": 1}]},
            ["plan.stages.0.depth: 6", "multiple of 4"],
        ),
        (
            {
                "method": "custom",
                "stages": [
                    {"depth": 8, "steps": 1},
                    {"depth": 12, "steps": 1, "trainable_layers": 6},
                ],
            },
            ["plan.stages.1.trainable_layers: 6", "multiple of 4", "num_hidden_groups 3"],
        ),
    ],
)
def test_stages_that_would_cut_a_group_are_refused(plan, words):
    with pytest.raises(RecipeError) as error:
        config_of(model=albert(3), **plan)
    text = str(error.value)
    assert all(word in text for word in words), text


def test_stacking_is_gongs():
    plan = plan_of(method="stacking", total_steps=400_000)
    assert column(plan, "depth") == [3, 6, 12]
    assert column(plan, "steps") == [50_000, 70_000, 280_000]
    assert column(plan, "frozen_layers") == [0, 0, 0]
    assert column(plan, "init") == ["fresh", "copy_all", "copy_all"]


def test_mslt_with_shares_of_its_own():
    shares = [0.7, 0.2, 0.1]
    plan = plan_of(
        12, method="mslt", num_stages=3, total_steps=1000, joint_share=0.2, stage_shares=shares
    )
    assert column(plan, "steps") == [560, 160, 80, 200]
    assert column(plan, "frozen_layers") == [0, 4, 8, 0]
    twin = plan_of(
        12, method="full", num_stages=3, total_steps=1000, joint_share=0.2, stage_shares=shares
    )
    assert column(twin, "steps") == [1000]
    for wrong, named in (([0.7, 0.3], "2 shares for plan.num_stages 3"), ([0.7, 0.2, 0.2], "1.1")):
        with pytest.raises(RecipeError, match=named):
            plan_of(12, method="mslt", num_stages=3, total_steps=1000, stage_shares=wrong)


def test_stacking_with_more_stages_needs_their_shares():
    shares = [0.1, 0.1, 0.2, 0.6]
    plan = plan_of(16, method="stacking", total_steps=1000, stage_shares=shares)
    assert column(plan, "depth") == [2, 4, 8, 16]
    assert column(plan, "steps") == [100, 100, 200, 600]
    with pytest.raises(RecipeError, match=r"plan.num_stages: 4.*plan.stage_shares with 4"):
        plan_of(16, method="stacking", total_steps=1000, num_stages=4)
    with pytest.raises(RecipeError, match=r"sum to 0.9"):
        plan_of(16, method="stacking", total_steps=1000, stage_shares=[0.1, 0.8])
    with pytest.raises(RecipeError, match="num_hidden_layers: 6 is not a multiple of 4"):
        plan_of(6, method="stacking", total_steps=1000)
    with pytest.raises(RecipeError, match="without a step"):
        plan_of(4, method="stacking", total_steps=2)


def test_full():
    plan = plan_of(method="full", num_stages=4, steps_per_stage=10, joint_share=0.2)
    assert column(plan, "depth") == column(plan, "trainable_layers") == [12]
    assert column(plan, "init") == ["fresh"]
    assert plan.total_steps == 50


def test_ways_to_say_the_steps():
    def steps(**values):
        return column(plan_of(method="mslt", num_stages=3, **values), "steps")

    assert steps(steps_per_stage=10) == [10, 10, 10]
    assert steps(steps_per_stage=10, joint_steps=0) == [10, 10, 10]
    assert steps(steps_per_stage=10, joint_steps=7) == [10, 10, 10, 7]
    assert steps(steps_per_stage=80, joint_share=0.2) == [80, 80, 80, 60]
    assert steps(total_steps=300, joint_share=0.2) == [80, 80, 80, 60]
    assert steps(total_steps=101, joint_steps=1) == [33, 34, 33, 1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["plan.total_steps: missing"]),
        ({"steps_per_stage": 1, "num_stages": None}, ["plan.num_stages: missing", "4, 6 or 12"]),
        ({"total_steps": 3, "joint_steps": 1}, ["plan.total_steps: 3", "2 steps", "4 stages"]),
        ({"total_steps": 3, "joint_steps": 4}, ["plan.joint_steps: 4", "plan.total_steps 3"]),
        ({"steps_per_stage": 1, "init": "copy_all"}, ["plan.init: copy_all", "copy_top or random"]),
        ({"steps_per_stage": 1, "init": "interpolate"}, ["plan.init: interpolate"]),
    ],
)
def test_mslt_refused(values, words):
    with pytest.raises(RecipeError) as error:
        plan_of(**{"method": "mslt", "num_stages": 4} | values)
    assert len(str(error.value).splitlines()) == 1
    assert all(word in str(error.value) for word in words), error.value


def test_custom():
    plan = plan_of(
        method="custom",
        init="random",
        stages=[
            {"depth": 4, "steps": 10, "seq_length": 64, "micro_batch_size": 32},
            {"depth": 6, "trainable_layers": 3, "steps": 20, "seq_length": 64},
            {"depth": 6, "trainable_layers": 2, "steps": 5, "seq_length": 32, "warmup_steps": 2},
            {"depth": 12, "steps": 30, "init": "interpolate", "learning_rate_factor": 0.5},
        ],
    )
    assert column(plan, "init") == ["fresh", "random", "keep", "interpolate"]
    assert column(plan, "frozen_layers") == [0, 3, 4, 0]
    assert column(plan, "seq_length") == [64, 64, 32, 128]
    assert column(plan, "first_instance") == [64 * steps for steps in [0, 10, 0, 0]]
    assert column(plan, "micro_batch_size") == [32, 16, 16, 16]
    assert column(plan, "learning_rate_factor") == [1.0, 1.0, 1.0, 0.5]
    assert column(plan, "warmup_steps") == [0, 0, 2, 0]


LAST = {"depth": 12, "steps": 1}


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (None, "plan.stages: missing"),
        ([], "plan.stages: missing"),
        ([{"depth": 6, "steps": 1}], r"plan.stages.0.depth: 6, but the last stage .* 12"),
        ([{"depth": 13, "steps": 1}], "plan.stages.0.depth: 13 is above"),
        ([LAST, {"depth": 6, "steps": 1}, LAST], "plan.stages.1.depth: 6 is below the 12"),
        ([LAST | {"trainable_layers": 13}], "plan.stages.0.trainable_layers: 13 is above"),
        ([LAST | {"init": "random"}], "plan.stages.0.init: random, but no layer is added"),
        ([LAST, LAST | {"init": "copy_top"}], "plan.stages.1.init: copy_top, but no layer"),
        (
            [{"depth": 6, "steps": 1}, LAST | {"init": "copy_all", "trainable_layers": 6}],
            "plan.stages.1.init: copy_all needs every layer to train, .* 6 of 12",
        ),
        (
            [LAST | {"trainable_layers": 6}],
            "data.seq_length: 128, but stage 1 .* positions 0 to 127",
        ),
        (
            [LAST, LAST | {"trainable_layers": 6, "seq_length": 256}],
            "plan.stages.1.seq_length: 256, but .* positions 128 to 255",
        ),
        ([LAST | {"seq_length": 1024}], "plan.stages.0.seq_length: 1024 is above"),
        ([LAST | {"warmup_steps": 2}], "plan.stages.0.warmup_steps: 2 is longer"),
        ([LAST | {"micro_batch_size": 24}], "plan.stages.0.micro_batch_size 24"),
    ],
)
def test_custom_refused(stages, words):
    with pytest.raises(RecipeError, match=f"^.*{words}.*$") as error:
        plan_of(method="custom", stages=stages)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "values",
    [{"steps_per_stage": 1}, {"total_steps": 5}, {"num_stages": 2}, {"joint_steps": 0}],
)
def test_custom_has_one_place_for_its_steps(values):
    key, value = next(iter(values.items()))
    with pytest.raises(RecipeError, match=f"^plan.{key}: {value}"):
        plan_of(method="custom", stages=[LAST], **values)


def test_custom_may_return_to_a_length_that_trained():
    stages = [LAST | {"seq_length": 256}, LAST, LAST | {"seq_length": 256, "trainable_layers": 3}]
    plan = plan_of(method="custom", stages=stages)
    assert column(plan, "first_instance") == [64 * steps for steps in [0, 0, 1]]


def test_a_micro_batch_that_no_stage_goes_by_is_not_held_against_the_recipe():
    stages = [LAST | {"micro_batch_size": 8}]
    config = config_of(train={"micro_batch_size": 24}, method="custom", stages=stages)
    assert column(build_plan(config), "micro_batch_size") == [8]


def test_long_sequence_splits_the_joint_stage():
    plan = plan_of(
        method="mslt",
        num_stages=4,
        steps_per_stage=200,
        joint_steps=200,
        long_sequence={"share": 0.1, "micro_batch_size": 4},
    )
    assert column(plan, "steps") == [200, 200, 200, 200, 100, 100]
    assert column(plan, "seq_length") == [128] * 5 + [512]
    assert column(plan, "micro_batch_size") == [16] * 5 + [4]
    assert column(plan, "first_instance") == [64 * steps for steps in [0, 200, 400, 600, 800, 0]]
    assert column(plan, "init")[-2:] == ["keep", "keep"]
    assert column(plan, "continues") == [False] * 5 + [True]
    assert plan.segment_at(850) == plan.segment_at(999) == (800, 1000)
    assert plan.segment_at(799) == (600, 800)


def test_long_sequence_over_several_stages():
    plan = plan_of(method="stacking", total_steps=1000, long_sequence={"share": 0.8})
    assert column(plan, "depth") == [3, 6, 6, 12]
    assert column(plan, "steps") == [125, 75, 100, 700]
    assert column(plan, "seq_length") == [128, 128, 512, 512]
    assert column(plan, "init") == ["fresh", "copy_all", "keep", "copy_all"]
    assert column(plan, "first_instance") == [64 * steps for steps in [0, 125, 0, 100]]
    assert column(plan, "continues") == [False, False, True, False]


def test_long_sequence_needs_trained_positions():
    mslt = {"method": "mslt", "num_stages": 4, "steps_per_stage": 200, "joint_steps": 200}
    plan_of(**mslt, long_sequence={"share": 0.2})
    with pytest.raises(RecipeError, match=r"^plan.long_sequence.share: 0.3 .* at most 0.2 "):
        plan_of(**mslt, long_sequence={"share": 0.3})
    with pytest.raises(RecipeError, match="less than one step"):
        plan_of(**mslt, long_sequence={"share": 0.0001})
    with pytest.raises(RecipeError, match=r"plan.long_sequence.seq_length: 1024 is above"):
        plan_of(**mslt, long_sequence={"share": 0.1, "seq_length": 1024})


def test_stage_at():
    plan = plan_of(method="mslt", num_stages=2, steps_per_stage=3, joint_steps=1)
    assert [plan.stage_at(step).index for step in range(7)] == [1, 1, 1, 2, 2, 2, 3]
    for step in (-1, 7):
        with pytest.raises(IndexError):
            plan.stage_at(step)


@st.composite
def plans(draw) -> tuple[RunConfig, Plan]:
    method = draw(st.sampled_from(["mslt", "stacking", "full", "custom"]))
    num_stages = draw(st.integers(1, 4))
    layers = draw(st.integers(1, 3)) * (4 if method == "stacking" else num_stages)
    values: dict = {"method": method}
    if method == "custom":
        depths = [*sorted(draw(st.lists(st.integers(1, layers), max_size=3))), layers]
        values["stages"] = [
            {
                "depth": depth,
                "steps": draw(st.integers(1, 50)),
                "seq_length": draw(st.sampled_from([64, 128])),
            }
            for depth in depths
        ]
        values["stages"][0]["seq_length"] = 128
    else:
        values["num_stages"] = 3 if method == "stacking" else num_stages
        if draw(st.booleans()):
            values["total_steps"] = draw(st.integers(20, 2000))
        else:
            values["steps_per_stage"] = draw(st.integers(20, 500))
        if draw(st.booleans()):
            values["joint_share"] = draw(st.floats(0, 0.7))
        else:
            values["joint_steps"] = draw(st.integers(0, 15))
    if method in ("full", "stacking") and draw(st.booleans()):
        values["long_sequence"] = {"share": draw(st.floats(0.06, 1.0))}
    config = config_of(layers, **values)
    return config, build_plan(config)


@given(plans())
def test_invariants(drawn):
    config, plan = drawn
    before = None
    at_length: dict[int, int] = {}
    for index, stage in enumerate(plan.stages, start=1):
        assert stage.index == index
        assert stage.steps >= 1
        assert stage.start_step == (before.end_step if before else 0)
        assert stage.first_instance == at_length.get(stage.seq_length, 0)
        at_length[stage.seq_length] = stage.first_instance + stage.steps * stage.global_batch_size
        assert 1 <= stage.trainable_layers <= stage.depth <= config.model.num_hidden_layers
        assert stage.train_embeddings == (stage.trainable_layers == stage.depth)
        if before is None:
            assert stage.init == "fresh" and not stage.continues
        else:
            assert stage.depth >= before.depth
            assert (stage.init == "keep") == (stage.depth == before.depth)
            # What a stage adds, it trains.
            assert stage.trainable_layers >= stage.depth - before.depth
            if stage.continues:
                assert stage.depth == before.depth and stage.seq_length > before.seq_length
        before = stage
    assert before is not None and before.depth == config.model.num_hidden_layers
    assert plan.total_steps == sum(stage.steps for stage in plan.stages)
    given = config.plan
    if given.total_steps is not None:
        assert plan.total_steps == given.total_steps
    if given.long_sequence is not None:
        long = sum(stage.steps for stage in plan.stages if stage.seq_length == 512)
        assert long == round(plan.total_steps * given.long_sequence.share)


@given(st.integers(1, 12), st.integers(1, 500), st.integers(0, 100), st.integers(1, 3))
def test_mslt_trains_each_layer_in_one_stage_and_in_the_joint_one(stages, steps, joint, added):
    plan = plan_of(
        stages * added, method="mslt", num_stages=stages, steps_per_stage=steps, joint_steps=joint
    )
    single = plan.stages[:stages]
    for layer in range(stages * added):
        assert sum(stage.frozen_layers <= layer < stage.depth for stage in single) == 1
    assert [stage.frozen_layers for stage in plan.stages[stages:]] == ([0] if joint else [])


@given(st.integers(20, 10_000), st.floats(0, 0.5), st.integers(1, 4))
def test_total_steps_are_shared_evenly(total, joint_share, stages):
    plan = plan_of(
        12 if stages != 4 else 4,
        method="mslt",
        num_stages=stages,
        total_steps=total,
        joint_share=joint_share,
    )
    steps = [stage.steps for stage in plan.stages[:stages]]
    assert max(steps) - min(steps) <= 1


def test_a_model_that_exists_may_be_frozen_from_the_first_stage():
    """Its embeddings are trained, unlike those of a fresh model."""
    stages = [{"depth": 12, "trainable_layers": 6, "steps": 5}, {"depth": 12, "steps": 5}]
    plan = plan_of(method="custom", stages=stages, init_from="some/model")
    assert column(plan, "init") == ["pretrained", "keep"]
    assert column(plan, "frozen_layers") == [6, 0]
    with pytest.raises(RecipeError, match=r"stage 1 keeps the embeddings frozen"):
        plan_of(method="custom", stages=stages)
    long = {"share": 0.8, "seq_length": 256}
    plan = plan_of(method="custom", stages=stages, init_from="some/model", long_sequence=long)
    assert column(plan, "seq_length") == [128, 256, 256]
    with pytest.raises(RecipeError, match=r"1024 is above model.max_position_embeddings"):
        plan_of(method="custom", init_from="some/model", stages=[LAST | {"seq_length": 1024}])


def test_nothing_freezes_where_the_recipe_says_so():
    steps = {"num_stages": 3, "steps_per_stage": 10, "joint_steps": 5}
    plan = plan_of(12, method="mslt", **steps, freeze="none")
    assert column(plan, "depth") == [4, 8, 12, 12]
    assert column(plan, "frozen_layers") == [0, 0, 0, 0]
    assert column(plan, "init") == ["fresh", "copy_top", "copy_top", "keep"]
    # Operators that put copies among the old layers are allowed then.
    plan_of(12, method="mslt", **steps, freeze="none", init="copy_all")
    with pytest.raises(RecipeError, match=r"plan.init: copy_all needs every layer to train"):
        plan_of(12, method="mslt", **steps, init="copy_all")
    with pytest.raises(
        RecipeError, match=r"plan.freeze: top, but plan.method mslt trains the layers on top"
    ):
        plan_of(12, method="mslt", **steps, freeze="top")
    stages = [{"depth": 12, "steps": 5}]
    with pytest.raises(RecipeError, match=r"plan.freeze: none, but plan.method custom reads"):
        plan_of(12, method="custom", stages=stages, freeze="none")


def test_the_top_freezes_where_the_recipe_says_so():
    def top(*stages: dict) -> Plan:
        given = [{"depth": 12, "steps": 5} | stage for stage in stages]
        return plan_of(12, method="custom", freeze="top", init_from="model", stages=given)

    plan = top({"trainable_layers": 4}, {"trainable_layers": 4, "train_embeddings": False}, {})
    assert column(plan, "trained") == [range(4), range(4), range(12)]
    assert column(plan, "frozen_layers") == [8, 8, 0]
    assert column(plan, "train_embeddings") == [True, False, True]
    plan = top({"depth": 6, "trainable_layers": 2}, {})
    assert column(plan, "trained") == [range(2), range(12)]
    with pytest.raises(
        RecipeError, match=r"stages.1.trainable_layers: 2 of 12, so that plan.freeze top would"
    ):
        top({"depth": 6}, {"trainable_layers": 2})
    with pytest.raises(RecipeError, match=r"stages.0.trainable_layers: 0, so nothing but heads"):
        top({"trainable_layers": 0})


def test_embeddings_freeze_apart_and_train_alone():
    given = {"method": "full", "total_steps": 20, "init_from": "model"}
    plan = plan_of(12, **given, freeze_embeddings=True)
    assert [(s.frozen_layers, s.train_embeddings) for s in plan.stages] == [(0, False)]
    plan = plan_of(12, **given, new_vocabulary={"steps": 7})
    assert column(plan, "steps") == [7, 20]
    assert column(plan, "trainable_layers") == [0, 12]
    assert column(plan, "train_embeddings") == [True, True]
    assert column(plan, "init") == ["pretrained", "keep"]
    assert column(plan, "first_instance") == [0, 7 * 64]
    assert len(plan_of(12, **given, new_vocabulary={"steps": 0}).stages) == 1
    for key, value in (("freeze_embeddings", True), ("new_vocabulary", {"steps": 7})):
        with pytest.raises(RecipeError, match=rf"plan.{key}: given without plan.init_from"):
            plan_of(12, method="full", total_steps=20, **{key: value})
    with pytest.raises(RecipeError, match=r"stages.0.trainable_layers: 0, so nothing but heads"):
        plan_of(12, method="custom", stages=[{"depth": 12, "steps": 5, "trainable_layers": 0}])


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ({"method": "full", "total_steps": 9}, None),
        ({"method": "full", "total_steps": 9, "new_vocabulary": {"steps": 2}}, None),
        ({"method": "mslt", "num_stages": 2, "steps_per_stage": 5}, None),
        ({"method": "custom", "stages": [{"depth": 12, "steps": 5, "trainable_layers": 3}]}, "stage 1"),
        ({"method": "custom", "freeze": "top", "stages": [{"depth": 12, "steps": 5, "trainable_layers": 3}]}, None),
    ],
)  # fmt: skip
def test_freezing_lower_layers_of_a_model_of_full_depth_is_warned_of(plan, named):
    config = config_of(12, **plan, init_from="model")
    warnings = plan_warnings(config, build_plan(config))
    assert bool(warnings) == (named is not None)
    if named:
        assert f"frozen in {named}" in warnings[0]
        assert (
            "recent work finds that this can undo what continued pretraining gains" in warnings[0]
        )
