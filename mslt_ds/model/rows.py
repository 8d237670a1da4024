"""Which tokens of a micro-batch run, where they lie in its instances, and attention among them.

A micro-batch comes as a grid, (batch, seq_length). All but attention works on each token alone, so
it needs no grid: where the loader says which places of the grid hold tokens, embeddings, projections,
feed-forward, norms and dropout run on (1, tokens). For attention, queries, keys and values are spread
over the grid and what comes out is taken back, or a kernel for sequences of different lengths runs on
them as they are, where the device has one. (The unpadded BERT of Zeng et al. 2022, arXiv 2208.08124,
section 4.1, and of Portes et al. 2023, MosaicBERT, section 3.1.3.)

The loader's choice of tokens may keep some padding, so that there are few different counts of them.
Importing this module imports no torch; see family.py for why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOKEN_PLACES, PREDICTION_PLACES = "token_places", "prediction_places"
"""Fields of a batch, (count,) int64 each: the places of the grids (batch, seq_length) and (batch,
max_predictions) that run, numbered row by row: those in use first, in order, then what is kept of the
padding. A field is missing where all places run."""

PREFIX_FIELDS = ("input_ids", "token_type_ids", "attention_mask", TOKEN_PLACES)
"""What the frozen layers read of a batch."""


@dataclass(frozen=True)
class Places:
    """Some places of a (batch, length) grid, each at most once, in some order; or the whole grid."""

    batch: int
    length: int
    chosen: Tensor | None  # (count,) int64; None: the whole grid

    def take(self, grid: Tensor) -> Tensor:
        """(batch, length, ...) -> (1, count, ...); the grid itself where it's whole."""
        if self.chosen is None:
            return grid
        return grid.flatten(0, 1).index_select(0, self.chosen).unsqueeze(0)

    def spread(self, taken: Tensor) -> Tensor:
        """What `take` gave, back in its places, with 0 in the others: (batch, length, ...)."""
        if self.chosen is None:
            return taken
        grid = taken.new_zeros((self.batch * self.length, *taken.shape[2:]))
        return grid.index_copy_(0, self.chosen, taken[0]).unflatten(0, (self.batch, self.length))


@dataclass(frozen=True)
class Positions:
    """Tokens whose output is used, some of each row: what `Family.run_layer_at` computes."""

    in_rows: Tensor  # (batch, n) int64: positions in the row
    used: Places  # of that grid
    tokens: Tensor  # (1, count) or (batch, n) int64: the numbers of the tokens
    by_row: Tensor | None = (
        None  # (count,) int64: which of them come one after the other in the rows
    )
    cu_seqlens: Tensor | None = None  # of these queries, see Rows

    def gather(self, hidden_states: Tensor) -> Tensor:
        """hidden_states of the tokens -> those at the positions: (1, count, ...) or (batch, n, ...)."""
        chosen = hidden_states.flatten(0, 1).index_select(0, self.tokens.flatten())
        return chosen.unflatten(0, self.tokens.shape)


@dataclass(frozen=True)
class Rows:
    """The rows of a micro-batch: its instances. The hidden states of its tokens are (1, tokens, hidden)
    or, where the whole grid runs, (batch, seq_length, hidden)."""

    tokens: Places
    mask: Tensor  # (batch, 1, 1 or seq_length, seq_length) bool: which keys a query attends to
    position_ids: Tensor  # (1, tokens), or (1, seq_length): each token's position in its row
    window: int | None = None  # a token attends to those at most so far from it; None: to its row
    # (2 batch + 1,) int32: where the tokens of each row begin, then what is kept of the padding, then as
    # many empty sequences as make the shape one of the batch. None where no kernel would take it.
    cu_seqlens: Tensor | None = None

    @classmethod
    def of(cls, inputs: dict[str, Tensor]) -> Rows:
        """inputs: `attention_mask` (batch, seq_length) bool, False at padding; TOKEN_PLACES, if any."""
        import torch

        attention_mask, chosen = inputs["attention_mask"], inputs.get(TOKEN_PLACES)
        batch, length = attention_mask.shape
        places = torch.arange(length, device=attention_mask.device) if chosen is None else chosen
        cu_seqlens = None
        if chosen is not None and has_varlen_kernel(attention_mask.device):
            cu_seqlens = _cu_seqlens(chosen, attention_mask)
        return cls(
            Places(batch, length, chosen),
            attention_mask[:, None, None, :],
            (places % length)[None],
            cu_seqlens=cu_seqlens,
        )

    def within(self, window: int) -> Rows:
        """The same rows, where a token attends to those at most `window` positions from it."""
        import torch

        place = torch.arange(self.tokens.length, device=self.mask.device)
        near = (place[:, None] - place).abs() <= window
        return replace(self, mask=self.mask & near, window=window)

    def at(self, in_rows: Tensor, used: Tensor | None) -> Positions:
        """in_rows: (batch, n) int64, positions in each row; used: (count,) int64, the places of this
        grid that are meant; None: all."""
        import torch
        import torch.nn.functional as F

        batch, length, chosen = self.tokens.batch, self.tokens.length, self.tokens.chosen
        places = Places(batch, in_rows.shape[1], used)
        begins = torch.arange(0, batch * length, length, device=in_rows.device)
        tokens = places.take(in_rows + begins[:, None])  # as places of the grid
        if chosen is not None:
            number = torch.arange(len(chosen), device=chosen.device)
            of_place = torch.zeros(batch * length, dtype=torch.int64, device=chosen.device)
            tokens = of_place.index_copy_(0, chosen, number)[tokens]
        if self.cu_seqlens is None:
            return Positions(in_rows, places, tokens)
        # The rows' sequences come first among those of `cu_seqlens`.
        count = tokens.numel()
        own = torch.arange(count, device=tokens.device) if used is None else used
        in_order, by_row = own.sort()
        begins = torch.arange(batch, device=tokens.device) * in_rows.shape[1]
        begins = F.pad(torch.searchsorted(in_order, begins), (0, batch + 1), value=count)
        return Positions(in_rows, places, tokens, by_row, begins.int())

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        dropout: float,
        scale: float | None,
        positions: Positions | None = None,
    ) -> Tensor:
        """Attention of each query to the tokens of its row. All are (..., heads, head size), the rest as
        hidden states have it -> as `query`.

        positions: where the queries are those of some tokens alone
        """
        import torch
        import torch.nn.functional as F

        is_half = query.dtype in (torch.float16, torch.bfloat16)
        if self.cu_seqlens is not None and is_half and dropout == 0.0:
            if positions is None:
                return self._attend_varlen(query, key, value, scale)
            if self.window is None:  # the kernel counts it from a sequence's end
                return self._attend_varlen_at(query, key, value, scale, positions)
        places, mask = self.tokens, self.mask
        if positions is not None:
            places = positions.used
            if self.window is not None:
                index = positions.in_rows[:, None, :, None].expand(-1, -1, -1, mask.shape[-1])
                mask = mask.gather(2, index)
        context = F.scaled_dot_product_attention(
            places.spread(query).transpose(1, 2),
            self.tokens.spread(key).transpose(1, 2),
            self.tokens.spread(value).transpose(1, 2),
            attn_mask=mask,
            dropout_p=dropout,
            scale=scale,
        )
        return places.take(context.transpose(1, 2))

    def _attend_varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        queries: tuple[Tensor, int] | None = None,
    ) -> Tensor:
        """`attend` by the kernel, which has no dropout.

        queries: `cu_seqlens` of the queries, and the most of a row; None: those of the tokens
        """
        from torch.nn.attention import varlen

        assert self.cu_seqlens is not None
        length, reach = self.tokens.length, -1 if self.window is None else self.window
        cu_queries, most = queries or (self.cu_seqlens, length)
        q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))
        context: Tensor | tuple[Tensor, ...] = varlen.varlen_attn(
            q, k, v, cu_queries, self.cu_seqlens, most, length, scale=scale, window_size=(reach, reach),
        )  # fmt: skip
        assert not isinstance(context, tuple)
        return context.unflatten(0, query.shape[:2])

    def _attend_varlen_at(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, positions: Positions
    ) -> Tensor:
        assert positions.by_row is not None and positions.cu_seqlens is not None
        in_rows = query.flatten(0, 1).index_select(0, positions.by_row)[None]
        queries = positions.cu_seqlens, positions.used.length
        context = self._attend_varlen(in_rows, key, value, scale, queries)[0]
        back = context.new_empty(context.shape).index_copy_(0, positions.by_row, context)
        return back.unflatten(0, query.shape[:2])


def has_varlen_kernel(device: torch.device) -> bool:
    """Whether torch's attention over sequences of different lengths runs there: Ampere and later."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _cu_seqlens(chosen: Tensor, attention_mask: Tensor) -> Tensor:
    """`Rows.cu_seqlens`. What is kept of the padding makes sequences of its own, one for each row that it
    is of: the kernel would leave its output undefined otherwise."""
    import torch
    import torch.nn.functional as F

    batch, length = attention_mask.shape
    kind = 2 * (chosen // length) + attention_mask.flatten()[chosen]
    sequence = F.pad((kind[1:] != kind[:-1]).long(), (1, 0)).cumsum(0)
    lengths = torch.zeros(2 * batch, dtype=torch.int64, device=chosen.device)
    lengths.index_add_(0, sequence, torch.ones_like(sequence))
    return F.pad(lengths.cumsum(0), (1, 0)).int()


def join(
    micro_batches: Sequence[dict[str, Tensor]],
) -> tuple[dict[str, Tensor], Callable[[Tensor], list[Tensor]]]:
    """Micro-batches of one shape as a single one, for the layers below the cut: its fields, and what
    splits its hidden states into theirs."""
    import torch

    if len(micro_batches) == 1:
        return micro_batches[0], lambda hidden_states: [hidden_states]
    names = (name for name in PREFIX_FIELDS if name != TOKEN_PLACES)
    joined = {name: torch.cat([fields[name] for fields in micro_batches]) for name in names}
    shape = micro_batches[0]["attention_mask"].shape
    if not any(TOKEN_PLACES in fields for fields in micro_batches):
        return joined, lambda hidden_states: list(hidden_states.split(shape[0]))
    whole = torch.arange(shape.numel(), device=joined["attention_mask"].device)
    places = [fields.get(TOKEN_PLACES, whole) for fields in micro_batches]
    joined[TOKEN_PLACES] = torch.cat([own + i * len(whole) for i, own in enumerate(places)])

    def split(hidden_states: Tensor) -> list[Tensor]:
        parts = hidden_states.split([len(own) for own in places], dim=1)
        return [
            part if TOKEN_PLACES in fields else part.unflatten(1, shape)[0]
            for part, fields in zip(parts, micro_batches, strict=True)
        ]

    return joined, split


def hugging_face_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Rows,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`Rows.attend` for Hugging Face's attention interface, which hands the argument
    `attention_mask` of a layer on as it is.

    query, key, value: (1 or batch, heads, tokens or seq_length, head size)
    """
    heads_last = (states.transpose(1, 2) for states in (query, key, value))
    return attention_mask.attend(*heads_last, dropout=dropout, scale=scaling), None
