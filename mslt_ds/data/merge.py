"""Units of tokenized documents to the arrays of a store, in order, exact duplicates left out.

Memory holds one unit, and 17 bytes for each document to find duplicates by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mslt_ds.atomic import flush_to_disk
from mslt_ds.data.store import ARRAYS, DOCUMENTS, SENTENCES, TOKEN_COUNTS, TOKENS
from mslt_ds.data.unit import Unit, read_hashes, read_unit


@dataclass
class MergeCounts:
    """What the store holds, and what was left out of it."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    empty_documents: int = 0  # nothing was left of their text
    duplicate_documents: int = 0  # the same text occurred before
    control_characters: int = 0


def merge(units: Sequence[Path], folder: Path, vocab_size: int) -> MergeCounts:
    """Write the arrays of a store into `folder` from unit files in the order of the text."""
    counts = MergeCounts()
    token_counts = np.zeros(vocab_size, np.int64)
    hashes = [read_hashes(path) for path in units]
    is_first = _first_of_its_kind(np.concatenate(hashes))
    offset = 0
    with (
        (folder / TOKENS).open("wb") as tokens,
        (folder / SENTENCES).open("wb") as sentences,
        (folder / DOCUMENTS).open("wb") as documents,
    ):
        for path in units:
            unit = read_unit(path)
            kept = is_first[offset : offset + len(unit.document_lengths)]
            offset += len(kept)
            has_text = unit.document_lengths > 0
            counts.empty_documents += int((~has_text).sum())
            counts.duplicate_documents += int((has_text & ~kept).sum())
            counts.control_characters += unit.control_characters
            part = _keep(unit, has_text & kept)
            tokens.write(part.tokens.tobytes())
            sentences.write((_starts(part.sentence_lengths) + counts.tokens).tobytes())
            documents.write((_starts(part.document_lengths) + counts.sentences).tobytes())
            token_counts += np.bincount(part.tokens, minlength=vocab_size)
            counts.tokens += len(part.tokens)
            counts.sentences += len(part.sentence_lengths)
            counts.documents += len(part.document_lengths)
        sentences.write(np.array([counts.tokens], np.int64).tobytes())
        documents.write(np.array([counts.sentences], np.int64).tobytes())
    (folder / TOKEN_COUNTS).write_bytes(token_counts.tobytes())
    for name in ARRAYS:
        flush_to_disk(folder / name)
    return counts


def _first_of_its_kind(hashes: np.ndarray) -> np.ndarray:
    """Which rows of `hashes`, (n, 2), occurred in no earlier row, (n,) bool."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal rows stay in their order
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    is_first = np.empty(len(order), np.bool_)
    is_first[order] = is_new
    return is_first


def _keep(unit: Unit, documents: np.ndarray) -> Unit:
    """The unit with the chosen documents alone; `documents`: (num_documents,) bool."""
    if documents.all():
        return unit
    sentences = np.repeat(documents, unit.document_lengths)
    tokens = np.repeat(sentences, unit.sentence_lengths)
    return Unit(
        unit.document_hashes[documents],
        unit.document_lengths[documents],
        unit.sentence_lengths[sentences],
        unit.tokens[tokens],
        unit.control_characters,
    )


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where runs of these lengths begin, (n,) int64."""
    starts = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts
