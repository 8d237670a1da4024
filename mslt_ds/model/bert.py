"""The one place that knows BERT: how Hugging Face's BERT modules are built, named and called.

Nothing of BERT is written anew. The modules are those of `transformers.models.bert`, put under the
same attribute path that they have in `BertForPreTraining`, so that a parameter's name here *is* its
name in a Hugging Face checkpoint and no translation table exists. What the rest of the program needs
of a model family is `family.Family`; this module is one, albert.py another.

Two exact savings are taken here:

* the MLM head runs at the masked positions only (Devlin et al. 2018, section 3.1, predicts only
  those), given as fixed-shape positions, so no shape depends on the data;
* the top layer runs its queries, attention output and feed-forward only where its output is used
  (the masked positions and [CLS]), with keys and values everywhere (`run_layer_at`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertLayer,
    BertOnlyMLMHead,
    BertPooler,
    BertPreTrainingHeads,
)

from mslt_ds.model import parts
from mslt_ds.model.parts import ModelSettings

TIED_WEIGHT = "bert.embeddings.word_embeddings.weight"
TIED = {
    "cls.predictions.decoder.weight": TIED_WEIGHT,
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
BLOCKS = "bert.encoder.layer."


def hf_config(
    model: ModelSettings, depth: int, vocab_size: int, *, sentence_head: bool = True
) -> BertConfig:
    """The Hugging Face configuration of a BERT of `depth` layers with a recipe's other sizes.

    sentence_head: whether it has a pooler and a head for two segments (`BertForPreTraining`) or is
        for masked tokens alone (`BertForMaskedLM`)
    """
    architecture = BertForPreTraining if sentence_head else BertForMaskedLM
    return parts.hf_config(
        BertConfig, architecture, model, num_hidden_layers=depth, vocab_size=vocab_size
    )


def add_encoder(root: nn.Module, config: BertConfig, layers: range, *, embeddings: bool) -> None:
    """Put the encoder's `layers` (and the embeddings) into `root`; their weights are not set."""
    if embeddings:
        parts.place(root, "bert.embeddings", lambda: BertEmbeddings(config))
    parts.place(
        root,
        "bert.encoder.layer",
        lambda: nn.ModuleDict({str(index): BertLayer(config, layer_idx=index) for index in layers}),
    )


def add_heads(root: nn.Module, config: BertConfig) -> None:
    """Put the heads into `root`, and the pooler where there is one for two segments; the MLM
    decoder's matrix is not among them."""

    def heads() -> nn.Module:
        made = (BertPreTrainingHeads if parts.has_sentence_head(config) else BertOnlyMLMHead)(
            config
        )
        # Tied: the matrix is the embeddings', the bias is `predictions.bias`. Without the module,
        # no engine can take them for parameters of their own.
        del made.predictions.decoder
        return made

    if parts.has_sentence_head(config):
        parts.place(root, "bert.pooler", lambda: BertPooler(config))
    parts.place(root, "cls", heads)


def layers_of(root: nn.Module, config: BertConfig) -> list[nn.Module]:
    """The encoder layers that `root` holds, from the bottom up."""
    return list(root.get_submodule("bert.encoder.layer").values())  # type: ignore[operator]


def embed(root: nn.Module, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
    """input_ids, token_type_ids: (batch, seq_length) -> hidden_states: (batch, seq_length, hidden)."""
    return root.get_submodule("bert.embeddings")(input_ids=input_ids, token_type_ids=token_type_ids)


def run_layer_at(
    layer: BertLayer, hidden_states: Tensor, bias: Tensor, positions: Tensor
) -> Tensor:
    """The layer's output at `positions` only: equal to `layer(...)` gathered there.

    hidden_states: (batch, seq_length, hidden); positions: (batch, chosen) int64
    -> (batch, chosen, hidden)
    """
    attention = layer.attention.self
    chosen = parts.gather_positions(hidden_states, positions)
    dropout = attention.dropout.p if layer.training else 0.0
    context = parts.attend_at(attention, hidden_states, chosen, bias, dropout)
    return layer.feed_forward_chunk(layer.attention.output(context, chosen))


def mlm_logits(root: nn.Module, hidden_states: Tensor, decoder_weight: Tensor | None) -> Tensor:
    """hidden_states: (batch, n, hidden) -> (batch, n, vocab).

    decoder_weight: (vocab, hidden), or None where `root` holds the embeddings it is tied to.
    """
    head = root.get_submodule("cls.predictions")
    if decoder_weight is None:
        decoder_weight = root.get_parameter(TIED_WEIGHT)
    return F.linear(head.transform(hidden_states), decoder_weight, head.bias)  # type: ignore[operator, arg-type]


def sentence_logits(root: nn.Module, cls_states: Tensor) -> Tensor:
    """cls_states: (batch, 1, hidden), the top layer at [CLS] -> (batch, 2)."""
    pooled = root.get_submodule("bert.pooler")(cls_states)
    return root.get_submodule("cls.seq_relationship")(pooled)
