"""Which parameters the optimizer decays."""

from __future__ import annotations

import pytest
import torch
from transformers import AlbertConfig, BertConfig

from mslt_ds.engine import parameter_groups
from mslt_ds.model.families import family_of


@pytest.mark.parametrize("config", [BertConfig(), AlbertConfig()], ids=["bert", "albert"])
def test_biases_and_layer_norms_do_not_decay(config):
    parameters = {
        name: torch.nn.Parameter(torch.empty(shape, device="meta"))
        for name, shape in family_of(config).parameter_shapes(config).items()
    }
    groups = parameter_groups(parameters, {}, 0.01)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.01}
    names = {parameter: name for name, parameter in parameters.items()}
    for group in groups:
        for name in (names[parameter] for parameter in group["params"]):
            is_vector = name.endswith((".bias", "LayerNorm.weight", "layer_norm.weight"))
            assert is_vector == (group["weight_decay"] == 0.0), name
