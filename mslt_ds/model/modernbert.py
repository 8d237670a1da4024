"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): how Hugging Face's modules are built and called.

* Norms stand before attention and feed-forward, after the embeddings and above the top layer. Layer 0 has
  none before its attention, for its input is normed already; a copy of it begins with a fresh one.
* Every third layer attends globally, the others within a window of 128 tokens (section 2.1.2). A block
  of each kind has its own rotary base, so a copy goes to a layer of its kind.
* Nothing but the decoder has a bias; the feed-forward is a GeGLU.
* Matrices begin as Hugging Face's do: normal, cut off at two standard deviations, the outputs of
  attention, feed-forward and head divided by sqrt(2 layers).

The global base is 160,000 from the first step on. Warner et al. train with 10,000 up to 1,024 tokens and
change it for the longer ones (section 2.2); `model.global_rope_theta` is the key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mslt_ds.model import parts
from mslt_ds.model.family import Family, Heads, ModelSection, Normal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mslt_ds.model.rows import Positions, Rows

    Tables = tuple[Tensor, Tensor]  # cos and sin, (1 or batch, positions, head size) each

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


class Kind(NamedTuple):
    """What layers of one kind share."""

    rows: Rows
    tables: Tables
    tables_at: Callable[[Tensor], Tables]  # of some position_ids


class ModernBert(Family):
    name = "modernbert"
    base = "model"
    architectures: ClassVar = {frozenset({"masked_lm"}): "ModernBertForMaskedLM"}
    word_embeddings = "model.embeddings.tok_embeddings.weight"
    tied: ClassVar = {"decoder.weight": word_embeddings}
    block_prefix = "model.layers."
    # Those of ModernBertConfig, which are ModernBERT-base's.
    defaults: ClassVar = {
        "num_hidden_layers": 22, "intermediate_size": 1152, "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "global_attn_every_n_layers": 3, "local_attention": 128,
        "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0,
    }  # fmt: skip
    unread = frozenset({"type_vocab_size"})
    renamed: ClassVar = {
        "hidden_act": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "hidden_dropout_prob": "mlp_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    }
    token_ids: ClassVar = {
        "pad_token_id": "pad", "bos_token_id": "cls", "cls_token_id": "cls",
        "eos_token_id": "sep", "sep_token_id": "sep",
    }  # fmt: skip
    sizes = (*Family.sizes, "local_attention")
    depth_attributes = ("num_hidden_layers", "layer_types", "rope_parameters")
    top_layer_at_positions = True
    norm_before_attention = True

    def kinds(self, model: ModelSection, blocks: int) -> list[str]:
        every = model.global_attn_every_n_layers
        assert every is not None  # it has a default
        return [_LOCAL if index % every else _GLOBAL for index in range(blocks)]

    def attended(self, model: ModelSection, block: int, seq_length: int) -> int:
        assert model.local_attention is not None
        window = model.local_attention // 2 * 2 + 1
        is_local = self.kinds(model, block + 1)[block] == _LOCAL
        return min(seq_length, window) if is_local else seq_length

    def embedding_parameters(self, model: ModelSection, vocab_size: int) -> int:
        return (vocab_size + 1) * model.hidden_size

    def block_parameters(self, model: ModelSection, block: int) -> int:
        hidden = model.hidden_size
        norms = (1 if block == 0 else 2) * hidden
        return 4 * hidden * hidden + 3 * hidden * model.intermediate_size + norms

    def head_parameters(self, model: ModelSection, vocab_size: int, heads: Heads) -> int:
        hidden = model.hidden_size
        return hidden + (hidden * hidden + hidden) + vocab_size  # final norm, head, decoder's bias

    norms = frozenset({"norm", "attn_norm", "mlp_norm", "final_norm"})
    matrices = frozenset({"tok_embeddings", "Wqkv", "Wi", "Wo", "dense"})
    bias_owners = frozenset({"decoder"})

    def initial(self, name: str, final: Any) -> float | Normal:
        rule = super().initial(name, final)
        if not isinstance(rule, Normal):
            return rule
        is_output = name.endswith((".Wo.weight", ".dense.weight"))
        scale = math.sqrt(2.0 * final.num_hidden_layers) if is_output else 1.0
        return Normal(rule.std / scale, cutoff=final.initializer_cutoff_factor)

    def add_encoder(self, root: nn.Module, config: Any, layers: range, *, embeddings: bool) -> None:
        from torch import nn
        from transformers.models.modernbert.modeling_modernbert import (
            ModernBertEmbeddings,
            ModernBertEncoderLayer,
        )

        if embeddings:
            parts.place(root, "model.embeddings", lambda: ModernBertEmbeddings(config))
        parts.place(
            root,
            "model.layers",
            lambda: nn.ModuleDict(
                {str(index): ModernBertEncoderLayer(config, layer_idx=index) for index in layers}
            ),
        )

    def add_heads(self, root: nn.Module, config: Any) -> None:
        from torch import nn
        from transformers.models.modernbert.modeling_modernbert import ModernBertPredictionHead

        def decoder() -> nn.Module:
            made = nn.Linear(config.hidden_size, config.vocab_size)
            del made.weight  # tied
            return made

        norm = {"eps": config.norm_eps, "bias": config.norm_bias}
        parts.place(root, "model.final_norm", lambda: nn.LayerNorm(config.hidden_size, **norm))
        parts.place(root, "head", lambda: ModernBertPredictionHead(config))
        parts.place(root, "decoder", decoder)

    def layers_of(self, root: nn.Module, config: Any) -> list[nn.Module]:
        return list(root.get_submodule("model.layers").values())  # type: ignore[operator]

    def context(self, root: nn.Module, config: Any, rows: Rows) -> dict[str, Kind]:
        from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

        rotary = ModernBertRotaryEmbedding(config, device=rows.position_ids.device)
        states = next(root.parameters())  # for its type

        def kind(name: str, seen: Rows) -> Kind:
            def tables_at(position_ids: Tensor) -> Tables:
                return rotary(states, position_ids, name)

            return Kind(seen, tables_at(rows.position_ids), tables_at)

        seen = {_GLOBAL: rows, _LOCAL: rows.within(config.sliding_window)}
        return {name: kind(name, seen[name]) for name in set(config.layer_types)}

    def embed(self, root: nn.Module, tokens: dict[str, Tensor], context: dict[str, Kind]) -> Tensor:
        return root.get_submodule("model.embeddings")(tokens["input_ids"])

    def run_layer(
        self, layer: Any, hidden_states: Tensor, context: dict[str, Kind], index: int
    ) -> Tensor:
        kind = context[layer.attention_type]
        return layer(hidden_states, attention_mask=kind.rows, position_embeddings=kind.tables)

    def run_layer_at(
        self,
        layer: Any,
        hidden_states: Tensor,
        context: dict[str, Kind],
        index: int,
        positions: Positions,
    ) -> Tensor:
        import torch.nn.functional as F

        kind, attention = context[layer.attention_type], layer.attn
        chosen = positions.gather(hidden_states)

        def project(states: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
            """The parts of Wqkv from `first` to `last` (excluded): (..., heads, head size) each."""
            size = attention.head_dim
            weight = attention.Wqkv.weight.unflatten(0, (3, -1))[first:last].flatten(0, 1)
            heads = F.linear(layer.attn_norm(states), weight).unflatten(
                -1, (last - first, -1, size)
            )
            return heads.unbind(-3)

        (query,) = project(chosen, 0, 1)
        key, value = project(hidden_states, 1, 3)
        tables = kind.tables_at(positions.used.take(positions.in_rows))
        attended = kind.rows.attend(
            _rotated(query, tables),
            _rotated(key, kind.tables),
            value,
            dropout=attention.attention_dropout if layer.training else 0.0,
            scale=attention.head_dim**-0.5,
            positions=positions,
        )
        states = chosen + attention.out_drop(attention.Wo(attended.flatten(-2)))
        return states + layer.mlp(layer.mlp_norm(states))

    def final_norm(self, root: nn.Module, hidden_states: Tensor) -> Tensor:
        return root.get_submodule("model.final_norm")(hidden_states)

    def token_logits(
        self, root: nn.Module, hidden_states: Tensor, decoder_weight: Tensor
    ) -> Tensor:
        import torch.nn.functional as F

        bias = root.get_parameter("decoder.bias")
        return F.linear(root.get_submodule("head")(hidden_states), decoder_weight, bias)


def _rotated(heads: Tensor, tables: Tables) -> Tensor:
    """(..., heads, head size) with their positions in them, as `apply_rotary_pos_emb` computes it."""
    from transformers.models.modernbert.modeling_modernbert import rotate_half

    cos, sin = (table.unsqueeze(-2) for table in tables)
    wide = heads.float()
    return (wide * cos + rotate_half(wide) * sin).to(heads.dtype)
