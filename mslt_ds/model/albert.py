"""ALBERT (Lan et al. 2020): how Hugging Face's ALBERT modules are built, named and called.

The embeddings have a smaller size and are mapped to the hidden size (section 3.1, factorized
embedding parameterization), and layers share their parameters. For staged training the sharing
goes by groups (Yang et al. 2020, "Progressively Stacking 2.0"): N layers in `num_hidden_groups`
groups of consecutive layers, each group one set of parameters that runs N/groups times. A stage
adds whole groups, so a group is the block that growth copies, and the cut lies between groups.

The two savings of bert.py are taken here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mslt_ds.model import parts
from mslt_ds.model.family import Family, Heads, ModelSection

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import AlbertConfig
    from transformers.models.albert.modeling_albert import AlbertLayer

    from mslt_ds.model.rows import Positions, Rows


_MAPPING = "albert.encoder.embedding_hidden_mapping_in"


class Albert(Family):
    name = "albert"
    base = "albert"
    architectures: ClassVar = {
        frozenset({"masked_lm", "pair"}): "AlbertForPreTraining",
        frozenset({"masked_lm"}): "AlbertForMaskedLM",
    }
    word_embeddings = "albert.embeddings.word_embeddings.weight"
    position_table = "albert.embeddings.position_embeddings.weight"
    tied: ClassVar = {
        "predictions.decoder.weight": word_embeddings,
        "predictions.decoder.bias": "predictions.bias",
    }
    block_prefix = "albert.encoder.albert_layer_groups."
    block_label = "group"
    block_key = "num_hidden_groups"
    defaults: ClassVar = {"embedding_size": 128, "num_hidden_groups": 1}  # those of AlbertConfig
    depth_attributes = ("num_hidden_layers", "num_hidden_groups", "inner_group_num")
    token_ids: ClassVar = {"pad_token_id": "pad", "bos_token_id": "cls", "eos_token_id": "sep"}

    def embedding_parameters(self, model: ModelSection, vocab_size: int) -> int:
        rows = vocab_size + model.max_position_embeddings + model.type_vocab_size
        size = _embedding_size(model)
        return rows * size + parts.layer_norm(size) + parts.dense(size, model.hidden_size)

    def block_parameters(self, model: ModelSection, block: int) -> int:
        return parts.post_norm_layer(model.hidden_size, model.intermediate_size)

    def head_parameters(self, model: ModelSection, vocab_size: int, heads: Heads) -> int:
        size = _embedding_size(model)
        return parts.bert_heads(model.hidden_size, size, vocab_size, pair="pair" in heads)

    top_layer_at_positions = True
    norms = frozenset({"LayerNorm", "full_layer_layer_norm"})
    matrices = frozenset(
        {
            "word_embeddings", "position_embeddings", "token_type_embeddings",
            "embedding_hidden_mapping_in", "query", "key", "value", "dense", "ffn", "ffn_output",
            "pooler", "classifier",
        }
    )  # fmt: skip
    bias_owners = frozenset({"predictions"})

    def part_of(self, name: str) -> str:
        # The mapping trains with the embeddings, though it stands in the encoder.
        return "embeddings" if name.startswith(f"{_MAPPING}.") else super().part_of(name)

    def add_encoder(
        self, root: nn.Module, config: AlbertConfig, layers: range, *, embeddings: bool
    ) -> None:
        from torch import nn
        from transformers.models.albert.modeling_albert import AlbertEmbeddings, AlbertLayerGroup

        each = _layers_per_group(config)
        if layers.start % each or layers.stop % each:
            raise ValueError(
                f"layers {layers.start} to {layers.stop - 1} cut a group of {each} layers"
            )
        if embeddings:
            parts.place(root, "albert.embeddings", lambda: AlbertEmbeddings(config))
            parts.place(
                root, _MAPPING, lambda: nn.Linear(config.embedding_size, config.hidden_size)
            )
        groups = range(layers.start // each, layers.stop // each)
        parts.place(
            root,
            "albert.encoder.albert_layer_groups",
            lambda: nn.ModuleDict({str(index): AlbertLayerGroup(config) for index in groups}),
        )

    def add_heads(self, root: nn.Module, config: AlbertConfig) -> None:
        from torch import nn
        from transformers.models.albert.modeling_albert import AlbertMLMHead, AlbertSOPHead

        def masked_lm() -> nn.Module:
            made = AlbertMLMHead(config)
            # Tied: the matrix is the embeddings', the bias is `predictions.bias`.
            del made.decoder
            return made

        parts.place(root, "predictions", masked_lm)
        if "pair" in self.heads_of(config):
            parts.place(
                root, "albert.pooler", lambda: nn.Linear(config.hidden_size, config.hidden_size)
            )
            parts.place(root, "sop_classifier", lambda: AlbertSOPHead(config))

    def layers_of(self, root: nn.Module, config: AlbertConfig) -> list[nn.Module]:
        groups = root.get_submodule("albert.encoder.albert_layer_groups").values()  # type: ignore[operator]
        each = _layers_per_group(config)
        return [layer for group in groups for layer in [group.albert_layers[0]] * each]

    def embed(self, root: nn.Module, tokens: dict[str, Tensor], context: Rows) -> Tensor:
        embedded = root.get_submodule("albert.embeddings")(**tokens)
        return root.get_submodule(_MAPPING)(embedded)

    def run_layer(
        self, layer: AlbertLayer, hidden_states: Tensor, context: Rows, index: int
    ) -> Tensor:
        return layer(hidden_states, context)  # type: ignore[arg-type]

    def run_layer_at(
        self,
        layer: AlbertLayer,
        hidden_states: Tensor,
        context: Rows,
        index: int,
        positions: Positions,
    ) -> Tensor:
        attention = layer.attention
        chosen = positions.gather(hidden_states)
        dropout = attention.attention_dropout.p if layer.training else 0.0
        attended = parts.attend_at(attention, hidden_states, chosen, context, positions, dropout)
        projected = attention.output_dropout(attention.dense(attended))
        normed = attention.LayerNorm(chosen + projected)
        return layer.full_layer_layer_norm(layer.ff_chunk(normed) + normed)

    def token_logits(
        self, root: nn.Module, hidden_states: Tensor, decoder_weight: Tensor
    ) -> Tensor:
        import torch.nn.functional as F

        head = root.get_submodule("predictions")
        transformed = head.LayerNorm(head.activation(head.dense(hidden_states)))  # type: ignore[operator]
        return F.linear(transformed, decoder_weight, head.bias)  # type: ignore[arg-type]

    def pair_logits(self, root: nn.Module, cls_states: Tensor) -> Tensor:
        """Without the dropout that Hugging Face's head has for classifiers: in pretraining,
        ALBERT's own code has none there."""
        pooled = root.get_submodule("albert.pooler")(cls_states[:, 0]).tanh()
        return root.get_submodule("sop_classifier.classifier")(pooled)


def _embedding_size(model: ModelSection) -> int:
    assert model.embedding_size is not None  # it has a default
    return model.embedding_size


def _layers_per_group(config: AlbertConfig) -> int:
    return config.num_hidden_layers // config.num_hidden_groups
