"""Documents that are tokenized already: rows of token ids, and how they are divided into sentences.

A row is a document: a list of ids, or a list of such lists, which are then its sentences. A single list is
divided behind tokens that end a sentence. Tokens that frame a text (roles cls, sep and pad) end a
sentence and are left out, as instances get their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mslt_ds.data.prepare.documents import Document, TextCounts, TokenRun
from mslt_ds.data.tokenizer import TextTokenizer
from mslt_ds.data.word_starts import text_of, word_marks
from mslt_ds.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_ENDS = frozenset(
    ".!?\u2026\u061f\u06d4\u0964\u0965\u104b\u1362\u1367\u17d4\u3002\uff01\uff0e\uff1f\uff61"
)


def documents_of_ids(
    place: object,
    columns: Iterator[pyarrow.Array],
    counts: TextCounts,
    sha256: hashlib._Hash | None,
) -> Iterator[Document]:
    """Yields a document for each row with ids. columns: Arrow arrays of lists, or of lists of lists"""
    row = 0
    for column in columns:
        for value in column:
            row += 1
            runs = _runs(value.values, f"--input: {place}: row {row}") if value.is_valid else []
            for run in runs:
                counts.paragraphs += 1
                counts.text_bytes += run.ids.nbytes
                if sha256 is not None:
                    sha256.update(b"%d\n" % len(run) + run.ids.tobytes())
            if runs:
                counts.documents += 1
                yield runs
            else:
                counts.empty_documents += 1


def check_ids_type(place: object, field: str, kind: pyarrow.DataType) -> None:
    """DataError unless values of this type are lists of integers, or lists of such lists."""
    from pyarrow import types

    inner: Any = kind
    depth = 0
    while types.is_list(inner) or types.is_large_list(inner) or types.is_fixed_size_list(inner):
        inner = inner.value_type
        depth += 1
    if depth not in (1, 2) or not types.is_integer(inner):
        raise DataError(
            f"--input: {place}: column {field!r} holds {kind} instead of lists of token ids"
        )


class SentenceCutter:
    """Divides runs of a tokenizer's ids into sentences."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        marks = word_marks(tokenizer.backend)
        self._vocab_size = tokenizer.vocab_size
        self._mask = tokenizer.special_tokens.mask
        self._ends = np.zeros(self._vocab_size, np.bool_)
        for token, number in tokenizer.vocabulary.items():
            text = text_of(token, marks, begins_word=False).strip()
            self._ends[number] = not _ENDS.isdisjoint(text) and not any(map(str.isalnum, text))
        self._frames = np.zeros(self._vocab_size, np.bool_)
        special = tokenizer.special_tokens
        for number in (special.cls, special.sep, special.pad):
            self._frames[number] = True
            self._ends[number] = False

    def sentences(self, run: TokenRun) -> list[np.ndarray]:
        """The run's sentences without tokens of a frame, each (n,) int64 and not empty.

        DataError if an id isn't in the vocabulary or the run is masked already.
        """
        ids = run.ids
        wrong = ids[(ids < 0) | (ids >= self._vocab_size)]
        if len(wrong):
            raise DataError(
                f"{run.place} holds the token id {wrong[0]}, and the tokenizer has ids up to "
                f"{self._vocab_size - 1}; --tokenizer has to be the one that the ids belong to"
            )
        if (ids == self._mask).any():
            raise DataError(
                f"{run.place} holds the mask's id {self._mask}: masks are drawn in training, anew in each "
                "epoch; give the ids before masking"
            )
        frames, ends = self._frames[ids], self._ends[ids]
        if run.is_sentence:
            parts = [ids[~frames]]
        else:
            # Behind the last of several marks, such as ?!, and before each token of a frame.
            ends[:-1] &= ~ends[1:]
            borders = np.union1d(np.flatnonzero(ends) + 1, np.flatnonzero(frames))
            kept = ~frames
            parts = [
                part[keep]
                for part, keep in zip(np.split(ids, borders), np.split(kept, borders), strict=True)
            ]
        return [part for part in parts if len(part)]


def _runs(values: Any, place: str) -> list[TokenRun]:
    """values: the Arrow array of a row's ids, or of its lists of ids"""
    import pyarrow

    is_nested = not pyarrow.types.is_integer(values.type)
    lists = [item.values for item in values if item.is_valid] if is_nested else [values]
    runs = []
    for ids in lists:
        if ids.null_count:
            raise DataError(f"{place} holds a null among its token ids; leave it out")
        if len(ids):
            numbers = ids.to_numpy(zero_copy_only=False).astype(np.int64)
            runs.append(TokenRun(numbers, is_nested, place))
    return runs
