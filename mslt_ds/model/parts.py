"""What the model families share: putting modules into a tree, and the shapes of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    PretrainedConfig,
    PreTrainedModel,
)


class ModelSettings(Protocol):
    """What a recipe's `model` section offers: Hugging Face's names."""

    def model_dump(self) -> dict[str, Any]: ...


class Attention(Protocol):
    """The parts of Hugging Face's self-attention that every family has under the same names."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_head_size: int
    scaling: float


def place(root: nn.Module, path: str, build: Callable[[], nn.Module]) -> None:
    """Build a module without initialising it and put it at its dotted path under `root`."""
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu")
    for name, buffer in module.named_buffers():  # no weights: nobody loads them
        match name.split(".")[-1]:
            case "position_ids":
                buffer.copy_(torch.arange(buffer.shape[-1]).expand(1, -1))
            case "token_type_ids":
                buffer.zero_()
    *parents, leaf = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(leaf, module)


def hf_config(
    config_class: type[PretrainedConfig],
    architecture: type[PreTrainedModel],
    model: ModelSettings,
    **sizes: int,
) -> Any:
    """A recipe's `model` section, with other `sizes`, as Hugging Face's configuration."""
    settings: dict[str, Any] = {
        key: value for key, value in model.model_dump().items() if value is not None
    }
    settings.pop("family", None)
    settings |= sizes
    config = config_class(**settings, architectures=[architecture.__name__])
    config._attn_implementation = "sdpa"
    return config


def has_sentence_head(config: PretrainedConfig) -> bool:
    """Whether the model has a pooler and a head for two segments, or is for masked tokens alone."""
    return not any(name.endswith("ForMaskedLM") for name in config.architectures or ())


def auto_class(config: PretrainedConfig) -> Any:
    """The class that builds and loads the configuration's pretraining model."""
    return AutoModelForPreTraining if has_sentence_head(config) else AutoModelForMaskedLM


def parameter_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the configuration's model, tied aliases left out."""
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def attention_bias(attention_mask: Tensor) -> Tensor:
    """attention_mask: (batch, seq_length) bool -> (batch, 1, 1, seq_length), True where attended.

    Built here and not by Hugging Face's mask utilities, which ask the device whether any token is
    padded at all: a host synchronisation in each step.
    """
    return attention_mask[:, None, None, :]


def attend_at(
    attention: Attention,
    hidden_states: Tensor,
    chosen: Tensor,
    bias: Tensor,
    dropout: float,
) -> Tensor:
    """Attention of the `chosen` states alone to all.

    hidden_states: (batch, seq_length, hidden); chosen: (batch, n, hidden), rows of it; bias as of
    `attention_bias` -> (batch, n, hidden), before the output's projection
    """

    def split_heads(
        states: Tensor,
    ) -> Tensor:  # (batch, length, hidden) -> (batch, heads, length, d)
        return states.unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)

    context = F.scaled_dot_product_attention(
        split_heads(attention.query(chosen)),
        split_heads(attention.key(hidden_states)),
        split_heads(attention.value(hidden_states)),
        attn_mask=bias,
        dropout_p=dropout,
        scale=attention.scaling,
    )
    return context.transpose(1, 2).flatten(-2)


def gather_positions(hidden_states: Tensor, positions: Tensor) -> Tensor:
    """hidden_states: (batch, seq_length, hidden), positions: (batch, n) -> (batch, n, hidden)."""
    index = positions.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1])
    return hidden_states.gather(1, index)
