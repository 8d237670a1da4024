"""RoBERTa (Liu et al. 2019): how Hugging Face's RoBERTa modules are built, named and called.

Its layers are BERT's, so what runs them is bert.py's. It differs in what stands below and above them:

* positions count from the padding token's id + 1. `max_position_embeddings` is the number of rows of the table, as in
  Hugging Face's configuration: 514 of them are enough for 512 tokens if padding has the id 1;
* there is one segment, so instances are packed sentences and not pairs (section 4.2);
* the head over the vocabulary, `lm_head`, has a module of its own, whose activation is always GELU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mslt_ds.model import parts
from mslt_ds.model.bert import Bert
from mslt_ds.model.family import ModelSection, Normal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mslt_ds.model.rows import Rows


class Roberta(Bert):
    name = "roberta"
    base = "roberta"
    architectures: ClassVar = {frozenset({"masked_lm"}): "RobertaForMaskedLM"}
    word_embeddings = "roberta.embeddings.word_embeddings.weight"
    position_table = "roberta.embeddings.position_embeddings.weight"
    tied: ClassVar = {
        "lm_head.decoder.weight": word_embeddings,
        "lm_head.decoder.bias": "lm_head.bias",
    }
    block_prefix = "roberta.encoder.layer."
    # Those of the published models; RobertaConfig's own are BERT's.
    defaults: ClassVar = {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}
    unread = frozenset({"type_vocab_size"})
    fixed: ClassVar = {"type_vocab_size": 1}
    token_ids: ClassVar = {"pad_token_id": "pad", "bos_token_id": "cls", "eos_token_id": "sep"}

    def first_position(self, pad_token_id: int) -> int:
        return pad_token_id + 1

    def embedding_parameters(self, model: ModelSection, vocab_size: int) -> int:
        rows = vocab_size + model.max_position_embeddings + 1
        return rows * model.hidden_size + parts.layer_norm(model.hidden_size)

    norms = frozenset({"LayerNorm", "layer_norm"})
    bias_owners = frozenset({"lm_head"})

    def initial(self, name: str, final: Any) -> float | Normal:
        if name == self.position_table:
            return Normal(final.initializer_range, zero_row=final.pad_token_id)
        return super().initial(name, final)

    def add_encoder(self, root: nn.Module, config: Any, layers: range, *, embeddings: bool) -> None:
        from torch import nn
        from transformers.models.roberta.modeling_roberta import RobertaEmbeddings, RobertaLayer

        if embeddings:
            parts.place(root, "roberta.embeddings", lambda: RobertaEmbeddings(config))
        parts.place(
            root,
            "roberta.encoder.layer",
            lambda: nn.ModuleDict(
                {str(index): RobertaLayer(config, layer_idx=index) for index in layers}
            ),
        )

    def add_heads(self, root: nn.Module, config: Any) -> None:
        from transformers.models.roberta.modeling_roberta import RobertaLMHead

        def head() -> nn.Module:
            made = RobertaLMHead(config)
            # Tied: the matrix is the embeddings', the bias is `lm_head.bias`.
            del made.decoder
            return made

        parts.place(root, "lm_head", head)

    def embed(self, root: nn.Module, tokens: dict[str, Tensor], context: Rows) -> Tensor:
        embeddings: Any = root.get_submodule("roberta.embeddings")
        # A token of padding has a position like any other: nothing attends to it.
        position_ids = tokens["position_ids"] + self.first_position(embeddings.padding_idx)
        return embeddings(**tokens | {"position_ids": position_ids})

    def token_logits(
        self, root: nn.Module, hidden_states: Tensor, decoder_weight: Tensor
    ) -> Tensor:
        import torch.nn.functional as F

        head: Any = root.get_submodule("lm_head")
        transformed = head.layer_norm(F.gelu(head.dense(hidden_states)))
        return F.linear(transformed, decoder_weight, head.bias)
