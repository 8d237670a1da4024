"""Fresh parameters are functions of (seed, name), distributed as Hugging Face's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
)

from mslt_ds.model import parts
from mslt_ds.model.families import FAMILIES, family_of
from mslt_ds.model.initial import fresh_weights

SIZES: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.05,
}


def config_of(depth: int) -> BertConfig:
    return BertConfig(**SIZES, num_hidden_layers=depth)


def test_all_depths_begin_with_the_same_numbers():
    shallow, deep = fresh_weights(config_of(2), seed=3), fresh_weights(config_of(6), seed=3)
    assert shallow.keys() < deep.keys()
    assert all(torch.equal(shallow[name], deep[name]) for name in shallow)


def test_seed_and_name_both_matter():
    weights, other = fresh_weights(config_of(2), seed=3), fresh_weights(config_of(2), seed=4)
    name = "bert.encoder.layer.{}.output.dense.weight"
    assert not torch.equal(weights[name.format(0)], weights[name.format(1)])
    assert not torch.equal(weights[name.format(0)], other[name.format(0)])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("unknown", ["gate.weight", "ln_1.weight", "query.scale", "x.bias"])
def test_an_unknown_parameter_is_an_error(name: str, unknown: str):
    family = FAMILIES[name]
    with pytest.raises(ValueError, match=f"{unknown}: model family {name} has no initial value"):
        family.initial(f"{family.block_prefix}0.{unknown}", config_of(2))


def test_a_buffer_of_unknown_values_is_an_error():
    """A module is built without initialisation: such a buffer would hold arbitrary memory."""
    with pytest.raises(ValueError, match=r"norm\.running_mean: the values of this buffer"):
        parts.place(torch.nn.Module(), "norm", lambda: torch.nn.BatchNorm1d(3))


CONFIGS = [
    config_of(2),
    AlbertConfig(
        **SIZES, embedding_size=32, num_hidden_layers=4, num_hidden_groups=2,
        architectures=["AlbertForPreTraining"],
    ),
    ModernBertConfig(**SIZES, num_hidden_layers=4, pad_token_id=3),
    RobertaConfig(**SIZES, num_hidden_layers=2, type_vocab_size=1, pad_token_id=3),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_names_shapes_and_distributions_are_hugging_faces(config: PretrainedConfig):
    torch.manual_seed(0)
    # transformers has no pretraining class of ModernBERT.
    is_masked_lm = isinstance(config, ModernBertConfig)
    model = (AutoModelForMaskedLM if is_masked_lm else AutoModelForPreTraining).from_config(config)
    weights = fresh_weights(config, seed=3)
    reference = dict(model.named_parameters())
    assert weights.keys() == reference.keys()
    for name, tensor in weights.items():
        assert tensor.shape == reference[name].shape and tensor.dtype == torch.float32
        if float(reference[name].detach().std()) == 0.0:
            assert torch.equal(tensor, reference[name]), name
        else:
            # the smallest matrix, (2, 64), has a standard error of 0.05 / sqrt(256)
            assert abs(float(tensor.std() - reference[name].detach().std())) < 0.012, name
            assert abs(float(tensor.mean())) < 0.015, name
    tables = {family_of(config).word_embeddings}
    if config.model_type == "roberta":
        tables.add("roberta.embeddings.position_embeddings.weight")
    for name in tables:
        # ModernBERT draws it too.
        is_drawn = config.model_type == "modernbert"
        assert bool(weights[name][config.pad_token_id].any()) == is_drawn
        assert bool(reference[name][config.pad_token_id].any()) == is_drawn
