"""A split as token ids, and batches of it that are padded to their own longest row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_PAD_MULTIPLE = 8  # tokens; tensor cores are fastest at multiples of 8


@dataclass(frozen=True)
class Encoded:
    """A split as token ids, without padding.

    columns: input_ids, attention_mask and what else the model takes; one list for each row
    """

    columns: dict[str, list[list[int]]]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.columns["input_ids"]]

    def batch(self, rows: Sequence[int], pad_to: int | None = None) -> dict[str, Tensor]:
        """The columns of `rows` as tensors, (rows, length) int64.

        pad_to: the length in tokens. By default it is that of the longest row, rounded up to a
            multiple of 8
        """
        longest = max(len(self.columns["input_ids"][row]) for row in rows)
        longest = -(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE if pad_to is None else pad_to
        batch = {}
        for name, values in self.columns.items():
            padding = self.pad_token_id if name == "input_ids" else 0
            table = [values[row] + [padding] * (longest - len(values[row])) for row in rows]
            batch[name] = torch.tensor(table)
        return batch


@dataclass(frozen=True)
class LabelledEncoded(Encoded):
    """A split with one or more labels for each row.

    labels: (rows,), or (rows, labels of each row)
    """

    labels: Tensor

    def batch(self, rows: Sequence[int], pad_to: int | None = None) -> dict[str, Tensor]:
        """The batch of `Encoded` with `labels`, (rows,) or (rows, labels of each row)."""
        return super().batch(rows, pad_to) | {"labels": self.labels[list(rows)]}
