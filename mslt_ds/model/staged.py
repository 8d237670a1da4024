"""A stage's model: a frozen prefix that only runs forward, and a trainable suffix.

The cut is the idea of multi-stage layerwise training (Yang et al. 2020, "Progressively Stacking
2.0", section 3): what lies below it needs no gradient, no optimizer state and no communication. So
the prefix is kept where no engine can see it, under `no_grad`, in the compute precision; the suffix
is the only module that DeepSpeed is given. The decoder matrix, tied to the frozen embeddings, enters
the suffix as an *input*: an input can't be broadcast, partitioned or stepped by mistake. Both parts
have Hugging Face's parameter names, so nothing translates them.

Embeddings may be frozen alone, as a prefix without layers. Frozen layers above something that trains, be it
embeddings or lower layers, can't be part of a prefix: the suffix runs through them as a `FrozenBody`, which
the gradient passes and no engine sees.

The model's family (`Family`) defines the layers and heads, and the objective (`Objective`) the losses;
this module knows no particular one. `inference_mode` would be cheaper still for the prefix, but autograd
refuses to save its tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

from mslt_ds.model.compiled import CompiledPart
from mslt_ds.model.families import family_of
from mslt_ds.model.family import Family
from mslt_ds.model.graphed import GraphedPart
from mslt_ds.model.objective import Objective
from mslt_ds.model.rows import Rows, hugging_face_attention
from mslt_ds.state import Weights

_ATTENTION = "mslt_ds"
AttentionInterface.register(_ATTENTION, hugging_face_attention)


class FrozenPrefix(nn.Module):
    """Embeddings and the layers below the cut. Parameters never require a gradient.

    dropout: whether the prefix is run in training mode (`train.frozen_dropout`)
    dtype: of what comes out, whatever the layers compute in
    """

    decoder_weight: Tensor
    """(vocab, embedding size): the frozen embeddings, as the suffix's decoder takes them."""

    def __init__(
        self, config: PretrainedConfig, num_layers: int, *, dropout: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._dtype = dtype
        self._config, self._family = _with_rows(config), family_of(config)
        self._family.add_encoder(self, self._config, range(num_layers), embeddings=True)
        self.requires_grad_(False)
        self.dropout = dropout
        self.compiled: CompiledPart | None = None
        self.graphed: GraphedPart | None = None
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
        """inputs: as of the suffix -> hidden_states: (1, tokens, hidden) or, where the whole grid runs,
        (batch, seq_length, hidden)."""
        return (self.graphed or self.compiled or self.hidden_states)(inputs)

    def hidden_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """`forward`, as it is."""
        family, rows = self._family, Rows.of(inputs)
        context = family.context(self, self._config, rows)
        hidden_states = family.embed(self, _tokens(inputs, rows), context)
        for index, layer in enumerate(family.layers_of(self, self._config)):
            hidden_states = family.run_layer(layer, hidden_states, context, index)
        return hidden_states.to(self._dtype)

    def place(self, weights: Weights, device: torch.device, layers_dtype: torch.dtype) -> None:
        """Fill the prefix with a copy of its part of `weights`, on the device.

        layers_dtype: what embeddings and layers are stored and computed in
        """
        _load(self, weights)
        self.to(device=device, dtype=layers_dtype)
        name = self._family.word_embeddings
        self.decoder_weight = self.get_parameter(name).detach()
        if layers_dtype != self._dtype:
            self.decoder_weight = weights[name].to(device=device, dtype=self._dtype)


class FrozenBody(nn.Module):
    """Frozen layers above what trains. Its parameters never require a gradient."""

    def __init__(self, config: PretrainedConfig, layers: range, *, dropout: bool) -> None:
        super().__init__()
        config = _with_rows(config)
        family_of(config).add_encoder(self, config, layers, embeddings=False)
        self.requires_grad_(False)
        self._dropout = dropout
        self.first_layer = layers.start
        self.layers = tuple(family_of(config).layers_of(self, config))

    def train(self, mode: bool = True) -> FrozenBody:
        """Dropout runs in training where the recipe wants it in frozen layers."""
        return super().train(mode and self._dropout)


class TrainableSuffix(nn.Module):
    """The layers that train, final norm and heads; the embeddings too where they train.

    bodies: the frozen layers that it runs through. A tuple, so that they are no part of this module for an
        engine
    """

    def __init__(
        self,
        config: PretrainedConfig,
        objective: Objective,
        trained: range,
        *,
        embeddings: bool,
        bodies: tuple[FrozenBody, ...] = (),
    ) -> None:
        super().__init__()
        self._config, self._family = _with_rows(config), family_of(config)
        self._objective, self._bodies = objective, bodies
        self._family.add_encoder(self, self._config, trained, embeddings=embeddings)
        self._family.add_heads(self, self._config)
        own = (trained.start, self._family.layers_of(self, self._config))
        parts = sorted(
            [own, *((body.first_layer, body.layers) for body in bodies)], key=lambda part: part[0]
        )
        self._first_layer = parts[0][0]
        self._layers = tuple(layer for _, layers in parts for layer in layers)  # bottom first
        self.compiled: CompiledPart | None = None

    def train(self, mode: bool = True) -> TrainableSuffix:
        for body in self._bodies:
            body.train(mode)
        return super().train(mode)

    def forward(
        self,
        inputs: dict[str, Tensor],
        hidden_states: Tensor | None,
        decoder_weight: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """The micro-batch's summed losses, each () fp32, in the order of `objective.losses`.

        inputs: the objective's `fields`; TOKEN_PLACES and PREDICTION_PLACES where padding is left out
        hidden_states: out of the prefix, None where there is none
        decoder_weight: (vocab, embedding size), None where the suffix holds the embeddings
        """
        # Evaluation is too short to be worth compiling for.
        run = (self.compiled if self.training else None) or self.sums
        return run(inputs, hidden_states, decoder_weight)

    def sums(
        self,
        inputs: dict[str, Tensor],
        hidden_states: Tensor | None,
        decoder_weight: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """`forward`, as it is."""
        family = self._family
        if decoder_weight is None:
            decoder_weight = self.get_parameter(family.word_embeddings)
        return self._objective.sums(
            self._top_states(inputs, hidden_states),
            inputs,
            token_logits=lambda states: family.token_logits(self, states, decoder_weight),
            pair_logits=lambda states: family.pair_logits(self, states),
        )

    def _top_states(self, inputs: dict[str, Tensor], hidden_states: Tensor | None) -> Tensor:
        """The model's output at the positions that the objective reads."""
        family, rows = self._family, Rows.of(inputs)
        context = family.context(self, self._config, rows)
        states = hidden_states
        if states is None:
            states = family.embed(self, _tokens(inputs, rows), context)
        *lower, top = self._layers
        for index, layer in enumerate(lower, start=self._first_layer):
            states = family.run_layer(layer, states, context, index)
        index = self._first_layer + len(lower)
        positions = self._objective.positions(inputs, rows)
        if positions is None:
            states = family.run_layer(top, states, context, index)
        else:
            states = family.run_layer_at(top, states, context, index, positions)
        return family.final_norm(self, states)


@dataclass(frozen=True)
class StageModel:
    """Prefix and suffix of one stage. `prefix` is None where the embeddings train."""

    family: Family
    prefix: FrozenPrefix | None
    suffix: TrainableSuffix

    @classmethod
    def build(
        cls,
        config: PretrainedConfig,
        objective: Objective,
        trained: range,
        weights: Weights,
        *,
        frozen_dropout: bool,
        dtype: torch.dtype,
        device: torch.device,
        prefix_dtype: torch.dtype | None = None,
        train_embeddings: bool | None = None,
    ) -> StageModel:
        """Both parts with `weights` in them, fresh modules each time.

        config: of the stage's depth, with the objective's heads
        trained: the layers that train
        dtype: that is computed in. The suffix stays in fp32: the engine casts it
        prefix_dtype: of the layers below the cut; None: `dtype`. The prefix is a copy in it; its
            numbers of record are in `weights` and never change
        train_embeddings: None: iff the lowest layer trains
        """
        if train_embeddings is None:
            train_embeddings = trained.start == 0
        frozen = [range(trained.stop, config.num_hidden_layers)]
        if train_embeddings:
            frozen.insert(0, range(trained.start))
        bodies = tuple(
            FrozenBody(config, layers, dropout=frozen_dropout) for layers in frozen if layers
        )
        for body in bodies:
            _load(body, weights)
            body.to(device=device, dtype=dtype).train()
        suffix = TrainableSuffix(
            config, objective, trained, embeddings=train_embeddings, bodies=bodies
        )
        _load(suffix, weights)
        prefix = None
        if not train_embeddings:
            prefix = FrozenPrefix(config, trained.start, dropout=frozen_dropout, dtype=dtype)
            prefix.place(weights, device, prefix_dtype or dtype)
        return cls(family_of(config), prefix, suffix.to(device))

    def compile(self) -> None:
        """Compile both parts, each when it first runs in training."""
        torch._dynamo.reset()  # what was compiled for the stage before
        if self.prefix is not None:
            self.prefix.compiled = CompiledPart("frozen prefix", self.prefix.hidden_states)
        self.suffix.compiled = CompiledPart("trainable suffix", self.suffix.sums)

    def graph(self) -> None:
        """Run the prefix as CUDA graphs, of compiled code where it's compiled. Not with dropout."""
        if self.prefix is not None:
            self.prefix.graphed = GraphedPart(self.prefix.compiled or self.prefix.hidden_states)


def _with_rows(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration, for layers that take `Rows` where Hugging Face's take a mask."""
    config = copy.deepcopy(config)
    config._attn_implementation = _ATTENTION
    return config


def _tokens(inputs: dict[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """What the embeddings take, see `Family.embed`."""
    taken = {name: rows.tokens.take(inputs[name]) for name in ("input_ids", "token_type_ids")}
    return taken | {"position_ids": rows.position_ids}


def _load(module: nn.Module, weights: Weights) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weights[name])
