"""Units of tokenized documents to the files of a store, in order, exact duplicates left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mslt_ds.atomic import flush_to_disk
from mslt_ds.data.store import DOCUMENTS, SENTENCES, TOKEN_COUNTS, TOKENS
from mslt_ds.data.unit import Unit, read_unit


@dataclass
class MergeCounts:
    """What the store holds, and what was left out of it. Documents but where it says otherwise."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    empty_documents: int = 0
    duplicate_documents: int = 0


def merge(units: Sequence[Path], folder: Path, vocab_size: int) -> MergeCounts:
    """Write the arrays of a store into `folder` from unit files in the order of the text."""
    counts = MergeCounts()
    token_counts = np.zeros(vocab_size, np.int64)
    first_of_its_kind = _first_of_its_kind(units)
    with (
        _array_file(folder / TOKENS) as tokens,
        _array_file(folder / SENTENCES) as sentences,
        _array_file(folder / DOCUMENTS) as documents,
    ):
        for path, is_first in zip(units, first_of_its_kind, strict=True):
            unit = read_unit(path)
            has_text = unit.document_lengths > 0
            counts.empty_documents += int((~has_text).sum())
            counts.duplicate_documents += int((has_text & ~is_first).sum())
            part = _keep(unit, has_text & is_first)
            sentence_starts = _starts(part.sentence_lengths) + counts.tokens
            document_starts = _starts(part.document_lengths) + counts.sentences
            part.tokens.tofile(tokens)
            sentence_starts.tofile(sentences)
            document_starts.tofile(documents)
            token_counts += np.bincount(part.tokens, minlength=vocab_size)
            counts.tokens += len(part.tokens)
            counts.sentences += len(part.sentence_lengths)
            counts.documents += len(part.document_lengths)
        np.array([counts.tokens], np.int64).tofile(sentences)
        np.array([counts.sentences], np.int64).tofile(documents)
    with _array_file(folder / TOKEN_COUNTS) as file:
        token_counts.tofile(file)
    for name in (TOKENS, SENTENCES, DOCUMENTS, TOKEN_COUNTS):
        flush_to_disk(folder / name)
    return counts


def _array_file(path: Path) -> BinaryIO:
    return path.open("wb")


def _first_of_its_kind(units: Sequence[Path]) -> Iterator[np.ndarray]:
    """For each unit, which of its documents occurred in no earlier place, (num_documents,) bool."""
    hashes = [read_unit(path).document_hashes for path in units]
    everything = np.concatenate(hashes) if hashes else np.empty((0, 2), np.uint64)
    pairs = np.ascontiguousarray(everything).view([("low", "u8"), ("high", "u8")]).ravel()
    _, first = np.unique(pairs, return_index=True)
    is_first = np.zeros(len(pairs), np.bool_)
    is_first[first] = True
    offset = 0
    for part in hashes:
        yield is_first[offset : offset + len(part)]
        offset += len(part)


def _keep(unit: Unit, documents: np.ndarray) -> Unit:
    """The unit with the chosen documents alone; `documents`: (num_documents,) bool."""
    sentences = np.repeat(documents, unit.document_lengths)
    tokens = np.repeat(sentences, unit.sentence_lengths)
    return Unit(
        unit.tokens[tokens],
        unit.sentence_lengths[sentences],
        unit.document_lengths[documents],
        unit.document_hashes[documents],
    )


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where runs of these lengths begin, (n,) int64."""
    starts = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts
