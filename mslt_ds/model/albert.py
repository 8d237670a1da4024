"""The one place that knows ALBERT: how Hugging Face's ALBERT modules are built, named and called.

Lan et al. 2020, "ALBERT": embeddings of a smaller size, mapped to the hidden size (section 3.1,
factorized embedding parameterization), and layers that share their parameters. For staged training
the sharing goes by groups (Yang et al. 2020, "Progressively Stacking 2.0"): N layers in
`num_hidden_groups` groups of consecutive layers, each group one set of parameters that runs N/groups
times. A stage adds whole groups, so a group is what growth copies and what the cut passes by.

The functions are those of bert.py, of which `family.Family` is the list; its two savings are taken
here too.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertForMaskedLM, AlbertForPreTraining
from transformers.models.albert.modeling_albert import (
    AlbertEmbeddings,
    AlbertLayer,
    AlbertLayerGroup,
    AlbertMLMHead,
    AlbertSOPHead,
)

from mslt_ds.model import parts
from mslt_ds.model.parts import ModelSettings

TIED_WEIGHT = "albert.embeddings.word_embeddings.weight"
TIED = {
    "predictions.decoder.weight": TIED_WEIGHT,
    "predictions.decoder.bias": "predictions.bias",
}
BLOCKS = "albert.encoder.albert_layer_groups."

_MAPPING = "albert.encoder.embedding_hidden_mapping_in"


def hf_config(
    model: ModelSettings, depth: int, vocab_size: int, *, sentence_head: bool = True
) -> AlbertConfig:
    """The Hugging Face configuration of an ALBERT of `depth` layers with a recipe's other sizes.

    depth: whole groups of the final model; they keep their number of layers
    sentence_head: whether it has a pooler and a head for two segments (`AlbertForPreTraining`) or
        is for masked tokens alone (`AlbertForMaskedLM`)
    """
    whole = model.model_dump()
    architecture = AlbertForPreTraining if sentence_head else AlbertForMaskedLM
    return parts.hf_config(
        AlbertConfig,
        architecture,
        model,
        num_hidden_layers=depth,
        num_hidden_groups=depth * whole["num_hidden_groups"] // whole["num_hidden_layers"],
        vocab_size=vocab_size,
    )


def add_encoder(root: nn.Module, config: AlbertConfig, layers: range, *, embeddings: bool) -> None:
    """Put the groups of `layers` (and the embeddings with their mapping to the hidden size) into
    `root`; their weights are not set. ValueError unless `layers` are whole groups."""
    each = _layers_per_group(config)
    if layers.start % each or layers.stop % each:
        raise ValueError(f"layers {layers.start} to {layers.stop - 1} cut a group of {each} layers")
    if embeddings:
        parts.place(root, "albert.embeddings", lambda: AlbertEmbeddings(config))
        parts.place(root, _MAPPING, lambda: nn.Linear(config.embedding_size, config.hidden_size))
    groups = range(layers.start // each, layers.stop // each)
    parts.place(
        root,
        BLOCKS.rstrip("."),
        lambda: nn.ModuleDict({str(index): AlbertLayerGroup(config) for index in groups}),
    )


def add_heads(root: nn.Module, config: AlbertConfig) -> None:
    """Put the heads into `root`, and the pooler where there is one for two segments; the MLM
    decoder's matrix is not among them."""

    def masked_lm() -> nn.Module:
        made = AlbertMLMHead(config)
        # Tied: the matrix is the embeddings', the bias is `predictions.bias`.
        del made.decoder
        return made

    parts.place(root, "predictions", masked_lm)
    if parts.has_sentence_head(config):
        parts.place(
            root, "albert.pooler", lambda: nn.Linear(config.hidden_size, config.hidden_size)
        )
        parts.place(root, "sop_classifier", lambda: AlbertSOPHead(config))


def layers_of(root: nn.Module, config: AlbertConfig) -> list[nn.Module]:
    """The encoder layers that `root` holds, from the bottom up: each group's as often as it runs."""
    groups = root.get_submodule(BLOCKS.rstrip(".")).values()  # type: ignore[operator]
    each = _layers_per_group(config)
    return [layer for group in groups for layer in [group.albert_layers[0]] * each]


def embed(root: nn.Module, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
    """input_ids, token_type_ids: (batch, seq_length) -> hidden_states: (batch, seq_length, hidden)."""
    embeddings = root.get_submodule("albert.embeddings")
    return root.get_submodule(_MAPPING)(
        embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    )


def run_layer_at(
    layer: AlbertLayer, hidden_states: Tensor, bias: Tensor, positions: Tensor
) -> Tensor:
    """The layer's output at `positions` only: equal to `layer(...)` gathered there.

    hidden_states: (batch, seq_length, hidden); positions: (batch, chosen) int64
    -> (batch, chosen, hidden)
    """
    attention = layer.attention
    chosen = parts.gather_positions(hidden_states, positions)
    dropout = attention.attention_dropout.p if layer.training else 0.0
    context = parts.attend_at(attention, hidden_states, chosen, bias, dropout)
    attended = attention.LayerNorm(chosen + attention.output_dropout(attention.dense(context)))
    return layer.full_layer_layer_norm(layer.ff_chunk(attended) + attended)


def mlm_logits(root: nn.Module, hidden_states: Tensor, decoder_weight: Tensor | None) -> Tensor:
    """hidden_states: (batch, n, hidden) -> (batch, n, vocab).

    decoder_weight: (vocab, embedding_size), or None where `root` holds the embeddings it is tied to.
    """
    head = root.get_submodule("predictions")
    if decoder_weight is None:
        decoder_weight = root.get_parameter(TIED_WEIGHT)
    transformed = head.LayerNorm(head.activation(head.dense(hidden_states)))  # type: ignore[operator]
    return F.linear(transformed, decoder_weight, head.bias)  # type: ignore[arg-type]


def sentence_logits(root: nn.Module, cls_states: Tensor) -> Tensor:
    """cls_states: (batch, 1, hidden), the top layer at [CLS] -> (batch, 2).

    Without the dropout that Hugging Face's head has for classifiers: in pretraining, ALBERT's code
    has none there.
    """
    pooled = root.get_submodule("albert.pooler")(cls_states[:, 0]).tanh()
    return root.get_submodule("sop_classifier.classifier")(pooled)


def _layers_per_group(config: AlbertConfig) -> int:
    return config.num_hidden_layers // config.num_hidden_groups
