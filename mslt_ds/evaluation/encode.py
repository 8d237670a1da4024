"""Texts to token ids, and examples to batches padded to their own longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mslt_ds.evaluation.glue.tasks import Examples, LabelledExamples

_PAD_MULTIPLE = 8  # tensor cores like it, and it costs a processor little


@dataclass(frozen=True)
class Encoded:
    """A split as token ids: what the tokenizer says of each row, not padded.

    columns: input_ids, attention_mask and whatever else the model takes, one list a row
    """

    columns: dict[str, list[list[int]]]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.columns["input_ids"]]

    def batch(self, rows: Sequence[int], pad_to: int | None = None) -> dict[str, Tensor]:
        """These rows: (rows, longest of them) each.

        pad_to: tokens to pad to instead of the longest row
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
    """A split with a label, or several, for each row.

    labels: (rows,), or (rows, labels of each)
    """

    labels: Tensor

    def batch(self, rows: Sequence[int], pad_to: int | None = None) -> dict[str, Tensor]:
        """As of any split, with `labels` of the rows."""
        return super().batch(rows, pad_to) | {"labels": self.labels[list(rows)]}


def encode(examples: Examples, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenize single texts or pairs, cut to `max_length` tokens (of a pair, the longer one first)."""
    sides = list(zip(*examples.texts, strict=True))
    columns = tokenizer(*(list(side) for side in sides), truncation=True, max_length=max_length)
    return Encoded(dict(columns), tokenizer.pad_token_id)


def encode_labelled(
    examples: LabelledExamples, tokenizer: Any, max_length: int, is_regression: bool
) -> LabelledEncoded:
    """`encode` with the labels: scores of a regression in fp32, else class numbers."""
    texts = encode(examples, tokenizer, max_length)
    labels = torch.tensor(examples.labels, dtype=torch.float32 if is_regression else torch.int64)
    return LabelledEncoded(texts.columns, texts.pad_token_id, labels)
