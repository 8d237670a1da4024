"""Fresh parameters, each a pure function of (seed, parameter name).

All methods and all depths therefore begin with the same numbers: layer 3 of a 6-layer model and
layer 3 of a 24-layer model are bitwise equal when both are fresh. A comparison of methods (and
figure 3 of the progressive-stacking-2.0 paper) is fair only then.

The distributions are BERT's and ALBERT's as Hugging Face draws them: N(0, initializer_range) for
matrices, with the padding row zero; LayerNorm 1 and 0; biases 0.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mslt_ds.model import parts
from mslt_ds.model.family import FAMILIES
from mslt_ds.state import Weights

_NORM_WEIGHTS = ("LayerNorm.weight", "layer_norm.weight")
_WORD_EMBEDDINGS = {family.TIED_WEIGHT for family in FAMILIES.values()}


def fresh_parameter(
    name: str, shape: tuple[int, ...], *, seed: int, initializer_range: float
) -> Tensor:
    """The fp32 tensor of `shape` that (seed, name) stands for."""
    if name.endswith(_NORM_WEIGHTS):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    tensor = torch.empty(shape).normal_(0.0, initializer_range, generator=generator)
    if name in _WORD_EMBEDDINGS:
        tensor[0].zero_()  # [PAD], as nn.Embedding(padding_idx=0) has it
    return tensor


def fresh_weights(config: PretrainedConfig, *, seed: int) -> Weights:
    """Weights of a whole fresh model of `config.num_hidden_layers` layers."""
    return {
        name: fresh_parameter(name, shape, seed=seed, initializer_range=config.initializer_range)
        for name, shape in parts.parameter_shapes(config).items()
    }
