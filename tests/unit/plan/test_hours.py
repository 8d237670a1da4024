"""Hours, memory and cost, and the paper's ratios."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mslt_ds.errors import RecipeError
from mslt_ds.plan import cost
from mslt_ds.plan.hardware import gpu
from mslt_ds.plan.hours import Cluster, Model, scaled_steps, twin_plan, with_hours
from mslt_ds.plan.methods import STACKING_SHARES
from mslt_ds.recipe.loading import Recipe, load_recipe

CONFIGS = Path(__file__).parents[3] / "configs"
VOCAB_SIZE = 30_522


def described(recipe: Recipe, cluster: Cluster, **options) -> dict:
    model = Model(recipe.config, VOCAB_SIZE, recipe.zero_stage)
    description = cost.describe_plan(
        recipe.config,
        recipe.plan,
        vocab_size=VOCAB_SIZE,
        world_size=cluster.gpus,
        zero_stage=recipe.zero_stage,
    )
    return with_hours(
        description,
        model,
        recipe.plan,
        lambda stage: model.step_seconds(stage, cluster).total,
        gpus=cluster.gpus,
        **options,
    )


# Hours on 32 V100s at batch 1,024 and 128 tokens (Yang et al. 2020): full, stacking, multi-stage.
PAPER = {"base": (85, 63, 40), "large": (188, 136, 84)}


@pytest.mark.parametrize("size", PAPER)
def test_the_papers_ratios(size):
    full, stacking, staged = PAPER[size]
    recipe = load_recipe(CONFIGS / f"bert_{size}_mslt.yaml")
    # The network at which a full step's backward pass, reduction and update take 6 forward passes.
    cluster = Cluster(32, gpu("v100"), network=60e9 / 8)
    model = Model(recipe.config, VOCAB_SIZE, 0)
    step = model.step_seconds(recipe.plan.stages[-1], cluster)
    if size == "base":
        assert (step.total - step.forward) / step.forward == pytest.approx(6, abs=0.5)
    twins = described(recipe, cluster)["twins"]
    assert twins["full"]["share_of_its_hours"] == pytest.approx(staged / full, abs=0.035)
    assert twins["full"]["share_by_layer_passes"] == pytest.approx(37.2 / 84)
    # Stacking took less than its layers explain: 68.8 of 84 units are 0.82, and the paper has 0.74.
    assert twins["stacking"]["hours"] / twins["full"]["hours"] == pytest.approx(0.83, abs=0.02)
    assert stacking / full == pytest.approx(0.73, abs=0.02)


def test_the_runs_figures_are_the_stages_together():
    recipe = load_recipe(CONFIGS / "bert_base_mslt.yaml")
    told = described(recipe, Cluster(8, gpu("a100")), price=2.0, overhead=[36.0] * 5)
    stages = told["stages"]
    for key in ("flops", "hours", "gpu_hours", "bytes_reduced", "cost"):
        assert told[key] == pytest.approx(sum(stage[key] for stage in stages))
    assert told["gpu_hours"] == 8 * told["hours"] and told["cost"] == 2 * told["gpu_hours"]
    assert told["memory_per_gpu_bytes"] == max(s["memory_per_gpu_bytes"] for s in stages)
    steps = told["total_steps"] * told["seconds_per_step"]
    assert told["hours"] == pytest.approx((steps + 5 * 36) / 3600)
    assert told["flops"] == sum(stage["flops_per_step"] * stage["steps"] for stage in stages)


def test_seconds_follow_the_hardware():
    recipe = load_recipe(CONFIGS / "bert_base_mslt.yaml")
    model = Model(recipe.config, VOCAB_SIZE, 0)
    joint = recipe.plan.stages[-1]
    slow = Cluster(32, gpu("v100"), network=1e9)
    fast = replace(slow, network=2e9)
    assert (
        model.step_seconds(joint, slow).reduction == 2 * model.step_seconds(joint, fast).reduction
    )
    # fp16: 110 M numbers of 2 bytes, twice through the ring but for a 32nd.
    assert model.step_seconds(joint, slow).reduction == pytest.approx(
        2 * 110_106_428 * 2 * 31 / 32 / 1e9
    )
    assert model.step_seconds(joint, Cluster(1, gpu("v100"))).reduction == 0
    doubled = model.step_seconds(joint, replace(slow, utilization=0.7))
    assert doubled.forward * 2 == pytest.approx(model.step_seconds(joint, slow).forward)
    fp32 = load_recipe(CONFIGS / "bert_base_mslt.yaml", ["train.precision=fp32"])
    assert Model(fp32.config, VOCAB_SIZE, 0).step_seconds(joint, slow).forward == pytest.approx(
        model.step_seconds(joint, slow).forward * 125 / 15.7
    )


@pytest.mark.parametrize(("zero", "least"), [(0, 16 * 110e6), (1, 4 * 110e6), (2, 2 * 110e6)])
def test_zero_divides_the_state(zero, least):
    recipe = load_recipe(
        CONFIGS / "bert_base_mslt.yaml",
        [f"deepspeed.config={CONFIGS.parent}/ds_configs/zero{zero}_fp16.json"],
    )
    model, joint = Model(recipe.config, VOCAB_SIZE, zero), recipe.plan.stages[-1]
    many, few = model.memory(joint, 10**9), model.memory(joint, 1)
    assert many > least
    assert few - many == pytest.approx({0: 0, 1: 12, 2: 14}[zero] * 110_106_428)
    # Frozen layers cost their weights, and no state of a gradient.
    assert model.memory(recipe.plan.stages[3], 1) < few / 2


def test_twins_take_the_same_batches():
    options = ["plan.global_batch_size=[1024, 1024, 2048, 2048, 4096]"]
    recipe = load_recipe(CONFIGS / "bert_base_mslt.yaml", options)
    instances = sum(s.steps * s.global_batch_size for s in recipe.plan.stages)
    for shares in ((1.0,), STACKING_SHARES):
        twin = twin_plan(recipe.config, recipe.plan, shares)
        assert twin is not None
        assert sum(s.steps * s.global_batch_size for s in twin) == instances
        assert all(s.frozen_layers == 0 for s in twin) and twin[-1].depth == 12
    by_depth = {d: sum(s.steps for s in twin if s.depth == d) for d in (3, 6, 12)}
    assert by_depth == {3: 125_000, 6: 175_000, 12: 700_000}
    odd = load_recipe(
        CONFIGS / "bert_base_full.yaml", ["model.num_hidden_layers=6", "plan.num_stages=null"]
    )
    assert twin_plan(odd.config, odd.plan, STACKING_SHARES) is None


@settings(max_examples=20)
@given(hours=st.floats(0.5, 500))
def test_scaled_steps_keep_the_plans_shares(hours):
    cluster = Cluster(8, gpu("a100"))
    for name in ("bert_base_mslt", "bert_base_mslt_squad"):
        recipe = load_recipe(CONFIGS / f"{name}.yaml")
        whole = described(recipe, cluster)["hours"]
        overrides = scaled_steps(recipe.config, hours / whole)
        fitted = load_recipe(CONFIGS / f"{name}.yaml", overrides)
        # Half a step of a longer sequence more, where the plan rounds up.
        assert described(fitted, cluster)["hours"] == pytest.approx(hours, rel=0.01)
        shares = [s.steps / fitted.plan.total_steps for s in fitted.plan.stages]
        assert shares == pytest.approx(
            [s.steps / recipe.plan.total_steps for s in recipe.plan.stages], abs=1e-3
        )


def test_a_custom_plan_is_scaled_stage_by_stage():
    stages = "plan.stages=[{depth: 6, steps: 100, warmup_steps: 10}, {depth: 12, steps: 50}]"
    options = ["plan={method: custom, total_steps: 150}", stages, "schedule.warmup_steps=10"]
    recipe = load_recipe(CONFIGS / "bert_base_mslt.yaml", options)
    overrides = scaled_steps(recipe.config, 0.5)
    fitted = load_recipe(CONFIGS / "bert_base_mslt.yaml", [*options, *overrides])
    assert [(s.steps, s.warmup_steps) for s in fitted.plan.stages] == [(50, 5), (25, 0)]
    with pytest.raises(RecipeError, match=r"--hours: too few: they leave plan.stages.0.steps 100"):
        scaled_steps(recipe.config, 0.001)
