"""A stage's model: a frozen prefix that only runs forward, and a trainable suffix.

The cut is the whole idea of multi-stage layerwise training (Yang et al. 2020, "Progressively
Stacking 2.0", section 3): what lies below it needs no gradient, no optimizer state and no
communication. So the prefix is kept where no engine can see it, under `no_grad`, in the compute
precision; the suffix is the only module that DeepSpeed is given. The decoder matrix, tied to the
frozen embeddings, enters the suffix as an *input*: an input can't be broadcast, partitioned or
stepped by mistake. Both parts have Hugging Face's parameter names: they need no translation.

`inference_mode` would be cheaper still for the prefix, but autograd refuses to save its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from mslt_ds.model import parts
from mslt_ds.model.family import family_of
from mslt_ds.state import Weights


class FrozenPrefix(nn.Module):
    """Embeddings and the layers below the cut. Parameters never require a gradient.

    dropout: whether the prefix is run in training mode (`train.frozen_dropout`).
    """

    def __init__(self, config: PretrainedConfig, num_layers: int, *, dropout: bool) -> None:
        super().__init__()
        self._config, self._family = config, family_of(config)
        self._family.add_encoder(self, config, range(num_layers), embeddings=True)
        self.requires_grad_(False)
        self.dropout = dropout
        super().train(dropout)

    def train(self, mode: bool = True) -> FrozenPrefix:
        """Ignored: whether dropout runs below the cut is the recipe's choice, not a caller's."""
        return self

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Inside, dropout is off whatever the recipe says: for evaluation."""
        super().train(False)
        try:
            yield
        finally:
            super().train(self.dropout)

    @torch.no_grad()
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """All (batch, seq_length) -> hidden_states: (batch, seq_length, hidden)."""
        hidden_states = self._family.embed(self, inputs["input_ids"], inputs["token_type_ids"])
        bias = parts.attention_bias(inputs["attention_mask"])
        for layer in self._family.layers_of(self, self._config):
            hidden_states = layer(hidden_states, bias)
        return hidden_states

    @property
    def decoder_weight(self) -> Tensor:
        """(vocab, embedding size): the frozen embeddings, as the suffix's MLM decoder takes them."""
        return self.get_parameter(self._family.TIED_WEIGHT).detach()


class TrainableSuffix(nn.Module):
    """The layers above the cut, pooler and heads; the embeddings too where nothing is frozen."""

    def __init__(self, config: PretrainedConfig, frozen_layers: int) -> None:
        super().__init__()
        self._config, self._family = config, family_of(config)
        layers = range(frozen_layers, config.num_hidden_layers)
        self._family.add_encoder(self, config, layers, embeddings=frozen_layers == 0)
        self._family.add_heads(self, config)
        self._has_sentence_head = parts.has_sentence_head(config)

    def forward(
        self,
        inputs: dict[str, Tensor],
        hidden_states: Tensor | None,
        decoder_weight: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """The micro-batch's summed losses of masked tokens and of sentence pairs, each () fp32; the
        latter 0 where the model has no head for pairs.

        inputs: `input_ids`, `token_type_ids`, `attention_mask` (batch, seq_length);
            `masked_positions`, `masked_labels`, `masked_weights` (batch, max_predictions);
            `next_sentence_labels` (batch,)
        hidden_states: (batch, seq_length, hidden) out of the prefix, None where there is none
        decoder_weight: (vocab, embedding size), None where the suffix holds the embeddings
        """
        masked, cls = self.top_states(inputs, hidden_states)
        logits = self._family.mlm_logits(self, masked, decoder_weight)  # (batch, n, vocab)
        per_position = F.cross_entropy(
            logits.flatten(0, 1).float(), inputs["masked_labels"].flatten(), reduction="none"
        )
        mlm_sum = (per_position * inputs["masked_weights"].flatten()).sum()
        if not self._has_sentence_head:
            return (mlm_sum,)
        sentence_sum = F.cross_entropy(
            self._family.sentence_logits(self, cls).float(),
            inputs["next_sentence_labels"],
            reduction="sum",
        )
        return mlm_sum, sentence_sum

    def top_states(
        self, inputs: dict[str, Tensor], hidden_states: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The top layer's output at the masked positions and at [CLS].

        -> (batch, max_predictions, hidden), (batch, 1, hidden)
        """
        states = hidden_states
        if states is None:
            states = self._family.embed(self, inputs["input_ids"], inputs["token_type_ids"])
        bias = parts.attention_bias(inputs["attention_mask"])
        *lower, top = self._family.layers_of(self, self._config)
        for layer in lower:
            states = layer(states, bias)
        # [CLS] is position 0; it goes first so that both heads read one gathered tensor.
        positions = F.pad(inputs["masked_positions"], (1, 0))
        chosen = self._family.run_layer_at(top, states, bias, positions)
        return chosen[:, 1:], chosen[:, :1]


@dataclass(frozen=True)
class StageModel:
    """Prefix and suffix of one stage. `prefix` is None where nothing is frozen."""

    prefix: FrozenPrefix | None
    suffix: TrainableSuffix

    @classmethod
    def build(
        cls,
        config: PretrainedConfig,
        frozen_layers: int,
        weights: Weights,
        *,
        frozen_dropout: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> StageModel:
        """Both parts with `weights` in them, fresh modules each time.

        The suffix stays in fp32: the engine casts it. The prefix is a copy in the compute `dtype`;
        its numbers of record are in `weights` and never change.
        """
        suffix = TrainableSuffix(config, frozen_layers)
        _load(suffix, weights)
        prefix = None
        if frozen_layers:
            prefix = FrozenPrefix(config, frozen_layers, dropout=frozen_dropout)
            _load(prefix, weights)
            prefix = prefix.to(device=device, dtype=dtype)
        return cls(prefix, suffix.to(device))

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Inside, both parts run as in evaluation; afterwards, as in training."""
        with self.prefix.without_dropout() if self.prefix else nullcontext():
            self.suffix.eval()
            try:
                yield
            finally:
                self.suffix.train()


def _load(module: nn.Module, weights: Weights) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weights[name])
