"""The recipes in configs/ say what the papers say, and twins differ in the method alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mslt_ds.plan.methods import build_plan
from mslt_ds.recipe.loading import load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {"base": (12, 768, 12, 3072), "large": (24, 1024, 16, 4096)}


def stages(config) -> list[tuple[int, int, int, int]]:
    """(depth, trainable layers, steps, sequence length) of each."""
    return [(s.depth, s.trainable_layers, s.steps, s.seq_length) for s in build_plan(config).stages]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_named_after_its_file(path):
    config = load_recipe(path).config
    assert config.name == path.stem
    # Readers of YAML 1.1 must find the same values.
    plain = yaml.safe_load(path.read_text())
    assert plain["optimizer"]["learning_rate"] == config.optimizer.learning_rate
    assert plain["optimizer"].get("eps", 1e-6) == config.optimizer.eps


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_numbers(size):
    recipe = load_recipe(CONFIGS / f"bert_{size}_mslt.yaml")
    config = recipe.config
    model = config.model
    shape = (
        model.num_hidden_layers,
        model.hidden_size,
        model.num_attention_heads,
        model.intermediate_size,
    )
    assert shape == SIZES[size]
    assert model.hidden_dropout_prob == model.attention_probs_dropout_prob == 0.1
    layers = model.num_hidden_layers
    k = layers // 4
    steps = 200_000
    assert stages(config) == [
        *((k * s, k, steps, 128) for s in (1, 2, 3, 4)),
        (layers, layers, steps, 128),
    ]
    assert config.train.global_batch_size == 1024 and config.train.micro_batch_size == 32
    recipe.check_world(32)
    assert config.train.precision == "fp16"
    assert config.optimizer.name == "lamb" and config.optimizer.learning_rate == 8.8e-4
    assert config.optimizer.weight_decay == 0.01 and config.optimizer.eps == 1e-6
    assert config.schedule.name == "linear" and config.schedule.warmup_steps == 10_000


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["stacking", "full"])
def test_twins_differ_in_the_method_alone(size, method):
    config = load_recipe(CONFIGS / f"bert_{size}_mslt.yaml", [f"plan.method={method}"]).config
    twin = load_recipe(CONFIGS / f"bert_{size}_{method}.yaml").config
    assert stages(twin) == stages(config)
    same = {"name": "", "plan": None}
    assert twin.model_copy(update=same) == config.model_copy(update=same)


def test_what_the_evidence_proposes_differs_in_the_plan_alone():
    late, first, once = (
        load_recipe(CONFIGS / f"bert_base_{method}.yaml").config
        for method in ("grow_late", "mslt_long_first", "stacking_once")
    )
    assert stages(once) == [(6, 6, 300_000, 128), (12, 12, 700_000, 128)]
    assert stages(late) == [(4, 4, 880_000, 128), (12, 12, 120_000, 128)]
    assert stages(first) == [
        (4, 4, 600_000, 128),
        *((depth, 4, 100_000, 128) for depth in (8, 12)),
        (12, 12, 200_000, 128),
    ]
    same = {"name": "", "plan": None}
    assert late.model_copy(update=same) == first.model_copy(update=same)
    assert late.model_copy(update=same) == once.model_copy(update=same)


def test_albert_is_trained_as_bert_is():
    albert = load_recipe(CONFIGS / "albert_base_mslt.yaml").config
    bert = load_recipe(CONFIGS / "bert_base_mslt.yaml").config
    assert stages(albert) == stages(bert)
    for section in ("plan", "train", "optimizer", "schedule"):
        assert getattr(albert, section) == getattr(bert, section)
    assert (albert.data.input_format, albert.data.masking) == ("sop", "ngram")
    assert (albert.model.num_blocks, albert.model.layers_per_block) == (4, 3)


def test_the_original_albert_differs_in_the_sharing_and_the_method_alone():
    changes = ["plan.method=full", "model.num_hidden_groups=1"]
    albert = load_recipe(CONFIGS / "albert_base_mslt.yaml", changes).config
    original = load_recipe(CONFIGS / "albert_base_full.yaml").config
    assert stages(original) == stages(albert)
    assert original.model.num_blocks == 1
    same = {"name": "", "plan": None}
    assert original.model_copy(update=same) == albert.model_copy(update=same)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["mslt", "stacking", "full"])
def test_squad_variants_end_in_long_sequences(size, method):
    recipe = load_recipe(CONFIGS / f"bert_{size}_mslt_squad.yaml", [f"plan.method={method}"])
    plain = load_recipe(CONFIGS / f"bert_{size}_{method}.yaml").config
    *before, (depth, trains, steps, _), long = stages(recipe.config)
    assert long == (depth, trains, 100_000, 512)
    assert [*before, (depth, trains, steps + 100_000, 128)] == stages(plain)
    recipe.check_world(32)


@pytest.mark.parametrize("size", SIZES)
def test_stacking_is_gongs(size):
    layers = SIZES[size][0]
    assert stages(load_recipe(CONFIGS / f"bert_{size}_stacking.yaml").config) == [
        (layers // 4, layers // 4, 125_000, 128),
        (layers // 2, layers // 2, 175_000, 128),
        (layers, layers, 700_000, 128),
    ]
