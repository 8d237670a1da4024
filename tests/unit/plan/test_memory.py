"""How many micro-batches one pass of the frozen layers takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mslt_ds.plan import cost, memory
from mslt_ds.recipe.loading import Recipe, load_recipe

BASE = Path(__file__).parents[3] / "configs" / "bert_base_mslt.yaml"  # four stages of three layers


def recipe_of(**train: object) -> Recipe:
    changes = {"global_batch_size": 256, "micro_batch_size": 4, "prefix_micro_batch_size": "auto"}
    return load_recipe(BASE, [f"train.{key}={value}" for key, value in (changes | train).items()])


def at_once(recipe: Recipe, world_size: int = 1) -> list[int]:
    """Of each stage."""
    stages = recipe.plan.stages
    return [memory.micro_batches_at_once(recipe.config, stage, world_size) for stage in stages]


def test_auto_takes_several_where_layers_are_frozen():
    # Three trained layers keep at least four times what a frozen layer holds while it runs.
    assert at_once(recipe_of()) == [1, 4, 4, 4, 1]


@given(world_size=st.sampled_from([1, 2, 4, 8, 16, 32]), micro=st.sampled_from([1, 2, 4, 8]))
def test_auto_parts_a_step_evenly_and_needs_no_more_than_the_trained_layers(world_size, micro):
    recipe = recipe_of(micro_batch_size=micro)
    for stage, number in zip(recipe.plan.stages, at_once(recipe, world_size), strict=True):
        assert stage.gradient_accumulation_steps(world_size) % number == 0
        frozen = memory._frozen_activations(recipe.config, stage)
        assert number == 1 or number * frozen <= memory._trained_activations(recipe.config, stage)


def test_no_pass_takes_more_than_a_step():
    assert at_once(recipe_of(prefix_micro_batch_size=512)) == [1, 64, 64, 64, 1]
    assert at_once(recipe_of(prefix_micro_batch_size=512), world_size=32) == [1, 2, 2, 2, 1]


def test_frozen_layers_in_a_smaller_precision_take_less():
    whole, half = recipe_of(precision="fp32"), recipe_of(precision="fp32", prefix_precision="bf16")
    stage = whole.plan.stages[3]
    frozen = memory._frozen_activations(whole.config, stage)
    assert memory._frozen_activations(half.config, stage) == frozen / 2
    assert at_once(half) == [1, 8, 8, 8, 1]
    needs = [
        memory.bytes_per_gpu(r.config, stage, 30_522, gpus=1, zero_stage=0)
        for r in (recipe_of(precision="fp32", prefix_micro_batch_size="null"),
                  recipe_of(precision="fp32", prefix_micro_batch_size="null", prefix_precision="bf16"))
    ]  # fmt: skip
    weights = cost.total_parameters(whole.config, stage, 30_522)
    weights -= cost.trainable_parameters(whole.config, stage, 30_522)
    assert needs[0] - needs[1] == 2 * weights + frozen / 2


def test_a_given_size_is_taken_as_it_is_and_frozen_dropout_draws_for_each_micro_batch():
    assert at_once(recipe_of(prefix_micro_batch_size=32)) == [1, 8, 8, 8, 1]
    assert at_once(recipe_of(prefix_micro_batch_size="null")) == [1] * 5
    assert at_once(recipe_of(frozen_dropout="'on'")) == [1] * 5


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_larger_pass_is_part_of_the_memory(stage):
    one, four = recipe_of(prefix_micro_batch_size=4), recipe_of()
    needs = [
        memory.bytes_per_gpu(r.config, r.plan.stages[stage], 30_522, gpus=1, zero_stage=0)
        for r in (one, four)
    ]
    frozen = memory._frozen_activations(one.config, one.plan.stages[stage])
    assert needs[1] - needs[0] == 3 * frozen
