"""BERT (Devlin et al. 2018): how Hugging Face's BERT modules are built, named and called.

Nothing of BERT is written anew: the modules are those of `transformers.models.bert`. Two exact
savings are taken here:

* the MLM head runs at the masked positions only (Devlin et al. 2018, section 3.1, predicts only
  those);
* the top layer runs its queries, attention output and feed-forward only where its output is used
  (the masked positions and [CLS]), with keys and values everywhere (`run_layer_at`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mslt_ds.model import parts
from mslt_ds.model.family import Family, Heads, ModelSection

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    from mslt_ds.model.rows import Positions, Rows


class Bert(Family):
    name = "bert"
    base = "bert"
    architectures: ClassVar = {
        frozenset({"masked_lm", "pair"}): "BertForPreTraining",
        frozenset({"masked_lm"}): "BertForMaskedLM",
    }
    word_embeddings = "bert.embeddings.word_embeddings.weight"
    position_table = "bert.embeddings.position_embeddings.weight"
    tied: ClassVar = {
        "cls.predictions.decoder.weight": word_embeddings,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    block_prefix = "bert.encoder.layer."

    def embedding_parameters(self, model: ModelSection, vocab_size: int) -> int:
        rows = vocab_size + model.max_position_embeddings + model.type_vocab_size
        return rows * model.hidden_size + parts.layer_norm(model.hidden_size)

    def block_parameters(self, model: ModelSection, block: int) -> int:
        return parts.post_norm_layer(model.hidden_size, model.intermediate_size)

    def head_parameters(self, model: ModelSection, vocab_size: int, heads: Heads) -> int:
        hidden = model.hidden_size
        return parts.bert_heads(hidden, hidden, vocab_size, pair="pair" in heads)

    top_layer_at_positions = True
    norms = frozenset({"LayerNorm"})
    matrices = frozenset(
        {
            "word_embeddings", "position_embeddings", "token_type_embeddings",
            "query", "key", "value", "dense", "seq_relationship",
        }
    )  # fmt: skip
    bias_owners = frozenset({"predictions"})

    def add_encoder(
        self, root: nn.Module, config: BertConfig, layers: range, *, embeddings: bool
    ) -> None:
        from torch import nn
        from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

        if embeddings:
            parts.place(root, "bert.embeddings", lambda: BertEmbeddings(config))
        parts.place(
            root,
            "bert.encoder.layer",
            lambda: nn.ModuleDict(
                {str(index): BertLayer(config, layer_idx=index) for index in layers}
            ),
        )

    def add_heads(self, root: nn.Module, config: BertConfig) -> None:
        from transformers.models.bert.modeling_bert import (
            BertOnlyMLMHead,
            BertPooler,
            BertPreTrainingHeads,
        )

        has_pair = "pair" in self.heads_of(config)

        def heads() -> nn.Module:
            made = (BertPreTrainingHeads if has_pair else BertOnlyMLMHead)(config)
            # Tied: the matrix is the embeddings', the bias is `predictions.bias`. Without the
            # module, no engine can take them for parameters of their own.
            del made.predictions.decoder
            return made

        if has_pair:
            parts.place(root, "bert.pooler", lambda: BertPooler(config))
        parts.place(root, "cls", heads)

    def layers_of(self, root: nn.Module, config: BertConfig) -> list[nn.Module]:
        return list(root.get_submodule(f"{self.base}.encoder.layer").values())  # type: ignore[operator]

    def embed(self, root: nn.Module, tokens: dict[str, Tensor], context: Rows) -> Tensor:
        return root.get_submodule("bert.embeddings")(**tokens)

    def run_layer(
        self, layer: BertLayer, hidden_states: Tensor, context: Rows, index: int
    ) -> Tensor:
        return layer(hidden_states, context)  # type: ignore[arg-type]

    def run_layer_at(
        self,
        layer: BertLayer,
        hidden_states: Tensor,
        context: Rows,
        index: int,
        positions: Positions,
    ) -> Tensor:
        attention = layer.attention.self
        chosen = positions.gather(hidden_states)
        dropout = attention.dropout.p if layer.training else 0.0
        attended = parts.attend_at(attention, hidden_states, chosen, context, positions, dropout)
        return layer.feed_forward_chunk(layer.attention.output(attended, chosen))

    def token_logits(
        self, root: nn.Module, hidden_states: Tensor, decoder_weight: Tensor
    ) -> Tensor:
        import torch.nn.functional as F

        head = root.get_submodule("cls.predictions")
        return F.linear(head.transform(hidden_states), decoder_weight, head.bias)  # type: ignore[operator, arg-type]

    def pair_logits(self, root: nn.Module, cls_states: Tensor) -> Tensor:
        pooled = root.get_submodule("bert.pooler")(cls_states)
        return root.get_submodule("cls.seq_relationship")(pooled)
