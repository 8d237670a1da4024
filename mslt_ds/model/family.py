"""What the program needs of a model family, and the families that there are.

A family is a module with these functions; bert.py is the one to read first.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PretrainedConfig

from mslt_ds.model import albert, bert
from mslt_ds.model.parts import ModelSettings


class Family(Protocol):
    """A model family: its modules, under the names that they have in a Hugging Face checkpoint."""

    @property
    def TIED_WEIGHT(self) -> str:
        """The word embeddings, which are also the matrix of the MLM decoder."""
        ...

    @property
    def TIED(self) -> dict[str, str]:
        """Second names under which Hugging Face's model shows tied parameters -> their own names."""
        ...

    @property
    def BLOCKS(self) -> str:
        """What the names of the parameters begin with that growth copies; a block's number follows."""
        ...

    def hf_config(
        self, model: ModelSettings, depth: int, vocab_size: int, *, sentence_head: bool = True
    ) -> Any: ...

    def add_encoder(
        self, root: nn.Module, config: Any, layers: range, *, embeddings: bool
    ) -> None: ...

    def add_heads(self, root: nn.Module, config: Any) -> None: ...

    def layers_of(self, root: nn.Module, config: Any) -> list[nn.Module]: ...

    def embed(self, root: nn.Module, input_ids: Tensor, token_type_ids: Tensor) -> Tensor: ...

    def run_layer_at(
        self, layer: Any, hidden_states: Tensor, bias: Tensor, positions: Tensor
    ) -> Tensor: ...

    def mlm_logits(
        self, root: nn.Module, hidden_states: Tensor, decoder_weight: Tensor | None
    ) -> Tensor: ...

    def sentence_logits(self, root: nn.Module, cls_states: Tensor) -> Tensor: ...


FAMILIES: MappingProxyType[str, Family] = MappingProxyType({"bert": bert, "albert": albert})
"""By the name that both `model.family` and Hugging Face's `model_type` have for them."""


def family_of(config: PretrainedConfig) -> Family:
    return FAMILIES[config.model_type]
