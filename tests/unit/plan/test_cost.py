"""Costs by arithmetic equal what the real modules hold."""

from __future__ import annotations

import math

import pytest
import transformers

from mslt_ds.config.sections import RunConfig
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.objective import OBJECTIVES
from mslt_ds.plan import cost
from mslt_ds.plan.methods import build_plan
from mslt_ds.recipe.loading import Recipe, parse_recipe
from tests.unit.plan.real_models import real_config, real_model

VOCAB_SIZE = 97


def config_of(plan: dict | None = None, **values) -> RunConfig:
    return recipe_of(plan, **values).config


def recipe_of(plan: dict | None = None, **values) -> Recipe:
    return parse_recipe(
        {
            "name": "run",
            "model": {
                "num_hidden_layers": 4,
                "hidden_size": 24,
                "num_attention_heads": 3,
                "intermediate_size": 40,
                "max_position_embeddings": 130,
            },
            "plan": plan
            or {"method": "mslt", "num_stages": 2, "steps_per_stage": 20, "joint_steps": 10},
            "data": {"path": "store"},
            "train": {"global_batch_size": 64, "micro_batch_size": 4},
            "optimizer": {"learning_rate": 1e-3},
        }
        | values
    )


MODEL = config_of().model.model_dump()
OWN_KEYS = {
    "bert": {"type_vocab_size": 3},
    "albert": {"type_vocab_size": 3, "embedding_size": 10, "num_hidden_groups": 2},
    "modernbert": {"global_attn_every_n_layers": 2},
    "roberta": {"max_position_embeddings": 131},
}
CASES = [
    (name, input_format)
    for name, family in FAMILIES.items()
    for input_format, objective in OBJECTIVES.items()
    if objective.heads in family.architectures
]


APART = {
    "method": "custom",
    "stages": [
        {"depth": 4, "steps": 1},
        {"depth": 4, "trainable_layers": 0, "train_embeddings": True, "steps": 1},
        {"depth": 4, "trainable_layers": 2, "train_embeddings": True, "steps": 1},
        {"depth": 4, "train_embeddings": False, "steps": 1},
    ],
}
"""Embeddings that don't train with all layers or freeze with some."""


TOP = {
    "method": "custom",
    "freeze": "top",
    "init_from": "model",
    "stages": [
        {"depth": 4, "trainable_layers": 0, "train_embeddings": True, "steps": 1},
        {"depth": 4, "trainable_layers": 2, "steps": 1},
        {"depth": 4, "trainable_layers": 2, "train_embeddings": False, "steps": 1},
    ],
}
"""Lower layers and embeddings that train below frozen layers."""


@pytest.mark.parametrize("plan", [None, APART, TOP], ids=["mslt", "apart", "top"])
@pytest.mark.parametrize(("family", "input_format"), CASES)
def test_equal_to_the_stage_models(input_format, family, plan):
    own = OWN_KEYS.get(family, {})
    # A family's own default counts where the recipe has none.
    model = (
        {key: value for key, value in MODEL.items() if value is not None} | {"family": family} | own
    )
    if "type_vocab_size" not in own:
        del model["type_vocab_size"]
    config = config_of(plan, data={"path": "store", "input_format": input_format}, model=model)
    for stage in build_plan(config).stages:
        model = real_model(config, stage, VOCAB_SIZE, frozen_dropout=False)
        trainable = sum(p.numel() for p in model.suffix.parameters() if p.requires_grad)
        assert cost.trainable_parameters(config, stage, VOCAB_SIZE) == trainable
        architecture = FAMILIES[family].architectures[config.data.objective.heads]
        whole_model = getattr(transformers, architecture)(real_config(config, stage, VOCAB_SIZE))
        whole = sum(p.numel() for p in whole_model.parameters())
        assert cost.total_parameters(config, stage, VOCAB_SIZE) == whole


def test_bert_base_has_the_known_size():
    config = config_of(plan={"method": "full", "total_steps": 1}, model=None)
    (stage,) = build_plan(config).stages
    assert cost.total_parameters(config, stage, cost.ASSUMED_VOCAB_SIZE) == 110_106_428


def test_albert_base_has_the_known_size():
    """Lan et al. 2020, table 1: 12M, layers and embeddings of 128 shared by all 12 layers; and one
    set of layer parameters more for each further group."""
    sizes = {"family": "albert", "vocab_size": 30_000}
    totals = []
    for groups in (1, 4):
        config = config_of(
            plan={"method": "full", "total_steps": 1}, model=sizes | {"num_hidden_groups": groups}
        )
        (stage,) = build_plan(config).stages
        totals.append(cost.total_parameters(config, stage, 30_000))
        hf_config = FAMILIES["albert"].hf_config(
            config.model, 12, 30_000, config.data.objective.heads
        )
        shapes = FAMILIES["albert"].parameter_shapes(hf_config).values()
        assert totals[-1] == sum(math.prod(shape) for shape in shapes)
    assert round(totals[0] / 1e6) == 12
    assert (
        totals[1] - totals[0]
        == 3 * FAMILIES["albert"].block_parameters(config.model, 0)
        == 3 * 7_087_872
    )


def test_description():
    config = config_of()
    description = cost.describe_plan(
        config, build_plan(config), vocab_size=VOCAB_SIZE, world_size=2, zero_stage=0
    )
    assert description["total_steps"] == 50
    assert description["total_tokens"] == 50 * 64 * 128
    first, second, joint = description["stages"]
    assert [stage["steps"] for stage in description["stages"]] == [20, 20, 10]
    assert second["frozen_layers"] == 2 and second["trainable_layers"] == 2
    assert second["tokens"] == 20 * 64 * 128
    assert second["gradient_accumulation_steps"] == 8
    assert second["trainable_share"] == (
        second["trainable_parameters"] / second["total_parameters"]
    )
    assert first["learning_rate_from"] == 1e-3
    assert first["learning_rate_to"] == pytest.approx(1e-3 * 31 / 50)
    assert second["learning_rate_from"] == pytest.approx(1e-3 * 30 / 50)
    assert joint["trainable_parameters"] == joint["total_parameters"]


@pytest.mark.parametrize(("zero_stage", "reductions"), [(0, 1), (1, 1), (2, 8)])
def test_zero_2_reduces_at_every_micro_step(tmp_path, zero_stage, reductions):
    path = tmp_path / "ds.json"
    path.write_text(f'{{"zero_optimization": {{"stage": {zero_stage}}}}}')
    recipe = recipe_of(deepspeed={"config": str(path)})
    description = cost.describe_plan(
        recipe.config,
        recipe.plan,
        vocab_size=VOCAB_SIZE,
        world_size=2,
        zero_stage=recipe.zero_stage,
    )
    assert description["zero_stage"] == zero_stage
    for stage in description["stages"]:
        assert stage["elements_reduced_per_step"] == stage["trainable_parameters"] * reductions
