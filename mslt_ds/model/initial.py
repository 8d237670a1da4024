"""Fresh parameters, each a pure function of the seed, its name and the final model's configuration.

All methods and all depths therefore begin with the same numbers: layer 3 of a 6-layer model and
layer 3 of a 24-layer model are bitwise equal when both are fresh. A comparison of methods (and
figure 3 of the progressive-stacking-2.0 paper) is fair only then. The family defines each
parameter's distribution (`Family.initial`).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mslt_ds.model.families import family_of
from mslt_ds.model.family import Normal
from mslt_ds.state import Weights


def fresh_parameter(
    name: str, shape: tuple[int, ...], *, seed: int, final: PretrainedConfig
) -> Tensor:
    """A fresh fp32 tensor of `shape`, determined by seed, name and final model. ValueError if the name
    is unknown.

    final: the configuration of the final model, whatever the depth of the parameter's own model
    """
    rule = family_of(final).initial(name, final)
    if not isinstance(rule, Normal):
        return torch.full(shape, rule)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    tensor = torch.empty(shape)
    if rule.cutoff is None:
        tensor.normal_(0.0, rule.std, generator=generator)
    else:
        limit = rule.cutoff * rule.std
        torch.nn.init.trunc_normal_(tensor, 0.0, rule.std, -limit, limit, generator=generator)
    if rule.zero_row is not None:
        tensor[rule.zero_row].zero_()
    return tensor


def fresh_weights(
    config: PretrainedConfig, *, seed: int, final: PretrainedConfig | None = None
) -> Weights:
    """Weights of a whole fresh model of `config`, by Hugging Face's names.

    final: the configuration of the model that it will grow into; None: it is `config` itself
    """
    return {
        name: fresh_parameter(name, shape, seed=seed, final=final or config)
        for name, shape in family_of(config).parameter_shapes(config).items()
    }
