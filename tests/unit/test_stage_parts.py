"""What a recipe says reaches the model, the feed and the engine's settings of a stage."""

from __future__ import annotations

import pytest
import torch

from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.recipe.loading import Recipe, parse_recipe
from mslt_ds.stage_parts import feed_of, model_of, settings_of

CPU = torch.device("cpu")
FROZEN, JOINT = 1, 2  # indices of the plan's stages


def recipe_of(**train) -> Recipe:
    """Four layers in two stages and a joint one."""
    return parse_recipe(
        {
            "name": "parts",
            "model": {
                "vocab_size": 61, "num_hidden_layers": 4, "hidden_size": 16,
                "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16,
            },
            "plan": {"method": "mslt", "num_stages": 2, "steps_per_stage": 2, "joint_steps": 2},
            "data": {"path": "store", "seq_length": 16},
            "train": {"global_batch_size": 8, "micro_batch_size": 2, "device": "cpu"} | train,
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
            "schedule": {"name": "constant"},
        }
    )  # fmt: skip


def built(recipe: Recipe, index: int):
    config, stage = recipe.config, recipe.plan.stages[index]
    hf_config = FAMILIES["bert"].hf_config(
        config.model, stage.depth, config.model.vocab_size or 0, config.data.objective.heads
    )
    return model_of(config, stage, hf_config, fresh_weights(hf_config, seed=1), CPU)


@pytest.mark.parametrize("setting", ["on", "off"])
def test_dropout_of_frozen_layers(setting):
    prefix = built(recipe_of(frozen_dropout=setting), FROZEN).prefix
    assert prefix is not None and prefix.dropout == (setting == "on")


def test_precisions():
    model = built(recipe_of(precision="fp32", prefix_precision="bf16"), FROZEN)
    assert model.prefix is not None
    assert {p.dtype for p in model.prefix.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.suffix.parameters()} == {torch.float32}


def test_a_joint_stage_freezes_nothing():
    model = built(recipe_of(), JOINT)
    assert model.prefix is None and all(p.requires_grad for p in model.suffix.parameters())


def test_settings_of_a_rank():
    recipe = recipe_of(gradient_clipping=0.5)
    settings = settings_of(recipe, recipe.plan.stages[FROZEN], world_size=2)
    assert settings.gradient_accumulation_steps == 2 and settings.micro_batch_size == 2
    assert settings.gradient_clipping == 0.5 and settings.optimizer == recipe.config.optimizer


def ahead(world_size: int, index: int = FROZEN, **train) -> bool:
    recipe = recipe_of(**train)
    stage, prefix = recipe.plan.stages[index], built(recipe, index).prefix
    return feed_of(recipe.config, stage, prefix, CPU, world_size).is_ahead


def test_where_the_prefix_runs_ahead():
    assert ahead(1, prefix_ahead="on")
    assert not ahead(2, prefix_ahead="off")
    # auto, on CPUs: among ranks that wait for each other
    assert ahead(2) and not ahead(1)
    assert not ahead(2, frozen_dropout="on")
    assert not ahead(2, index=JOINT)


def test_micro_batches_of_one_pass():
    recipe = recipe_of(prefix_micro_batch_size=4)
    stage, prefix = recipe.plan.stages[FROZEN], built(recipe, FROZEN).prefix
    assert feed_of(recipe.config, stage, prefix, CPU, world_size=1).at_once == 2
