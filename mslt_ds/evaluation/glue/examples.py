"""The rows of a GLUE split, as texts and as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mslt_ds.evaluation.encoded import Encoded, LabelledEncoded


@dataclass(frozen=True)
class Examples:
    """Rows of a split, in its order.

    texts: one or two texts of each row
    ids: the index column of a test split, or the row's number
    """

    texts: list[tuple[str, ...]]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def characters(self) -> int:
        return sum(len(text) for texts in self.texts for text in texts)


@dataclass(frozen=True)
class LabelledExamples(Examples):
    """Rows of a train or dev split.

    labels: class numbers, or the scores of a regression task
    """

    labels: list[int] | list[float]


def encode(examples: Examples, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenize single texts or pairs, truncated to `max_length` tokens. Of a pair, the longer text is
    truncated first."""
    sides = list(zip(*examples.texts, strict=True))
    columns = tokenizer(*(list(side) for side in sides), truncation=True, max_length=max_length)
    return Encoded(dict(columns), tokenizer.pad_token_id)


def encode_labelled(
    examples: LabelledExamples, tokenizer: Any, max_length: int, is_regression: bool
) -> LabelledEncoded:
    """`encode` with labels: fp32 scores for a regression task, otherwise int64 class numbers."""
    texts = encode(examples, tokenizer, max_length)
    labels = torch.tensor(examples.labels, dtype=torch.float32 if is_regression else torch.int64)
    return LabelledEncoded(texts.columns, texts.pad_token_id, labels)
