"""Which parameters the optimizer decays."""

from __future__ import annotations

import pytest
import torch
from transformers import AlbertConfig, BertConfig

from mslt_ds.engine import parameter_groups
from mslt_ds.model.family import family_of


@pytest.mark.parametrize("config", [BertConfig(), AlbertConfig()], ids=["bert", "albert"])
def test_matrices_decay_and_vectors_do_not(config):
    """Biases and the weights of LayerNorm are all that is one-dimensional."""
    parameters = {
        name: torch.nn.Parameter(torch.empty(shape, device="meta"))
        for name, shape in family_of(config).parameter_shapes(config).items()
    }
    groups = parameter_groups(parameters, {}, 0.01)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.01}
    for group in groups:
        assert {p.ndim for p in group["params"]} == ({1} if group["weight_decay"] == 0 else {2})
