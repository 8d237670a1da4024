"""What the model families share: counts, putting modules into a tree, and attention at positions.

Importing this module imports no torch; see family.py for why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mslt_ds.model.rows import Positions, Rows


class SelfAttention(Protocol):
    """The parts of Hugging Face's self-attention that BERT and ALBERT have under the same names."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_head_size: int
    scaling: float


def dense(inputs: int, outputs: int) -> int:
    """Elements of a linear layer with a bias."""
    return inputs * outputs + outputs


def layer_norm(size: int) -> int:
    """Elements of a LayerNorm with a bias."""
    return 2 * size


def post_norm_layer(hidden: int, intermediate: int) -> int:
    """Elements of a layer of attention and feed-forward, each with a LayerNorm after it."""
    attention = 4 * dense(hidden, hidden) + layer_norm(hidden)
    feed_forward = dense(hidden, intermediate) + dense(intermediate, hidden) + layer_norm(hidden)
    return attention + feed_forward


def bert_heads(hidden: int, embedding: int, vocab_size: int, *, pair: bool) -> int:
    """Elements of the transform before the tied decoder and of its bias; with `pair`, also of the
    pooler and of the head with two classes.

    embedding: size of the word embeddings
    """
    masked_lm = dense(hidden, embedding) + layer_norm(embedding) + vocab_size
    return masked_lm + (dense(hidden, hidden) + dense(hidden, 2) if pair else 0)


def place(root: nn.Module, path: str, build: Callable[[], nn.Module]) -> None:
    """Build a module without initialising its weights and put it at its dotted path under `root`.

    ValueError for a buffer whose values aren't known here: it would hold arbitrary memory.
    """
    import torch
    from torch import nn

    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu")
    for name, buffer in module.named_buffers():
        match name.split(".")[-1]:
            case "position_ids":
                buffer.copy_(torch.arange(buffer.shape[-1]).expand(1, -1))
            case "token_type_ids":
                buffer.zero_()
            case _:
                raise ValueError(
                    f"{path}.{name}: the values of this buffer aren't known; compute in "
                    "`Family.context` what layers share"
                )
    *parents, leaf = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(leaf, module)


def attend_at(
    attention: SelfAttention,
    hidden_states: Tensor,
    chosen: Tensor,
    rows: Rows,
    positions: Positions,
    dropout: float,
) -> Tensor:
    """Attention of the `chosen` states alone to all.

    hidden_states: of the tokens of `rows`; chosen: those at `positions` -> `chosen`'s shape, before the
    output's projection
    """

    def split_heads(states: Tensor) -> Tensor:  # (..., hidden) -> (..., heads, head size)
        return states.unflatten(-1, (-1, attention.attention_head_size))

    context = rows.attend(
        split_heads(attention.query(chosen)),
        split_heads(attention.key(hidden_states)),
        split_heads(attention.value(hidden_states)),
        dropout=dropout,
        scale=attention.scaling,
        positions=positions,
    )
    return context.flatten(-2)
