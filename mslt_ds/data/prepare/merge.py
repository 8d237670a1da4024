"""Merges units of tokenized documents into the arrays of a store, in order.

Exact duplicates are dropped, and each document is repeated according to the weight of its source. With
a weight of 2.5 every document is stored twice and half of them a third time; with 0.1 one in ten is
stored. The choice depends on the text alone. A text that several sources have belongs to the first.

Memory holds one unit, one byte for each document, and a bounded number of hashes: duplicates are
searched bucket by bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mslt_ds.atomic import flush_to_disk
from mslt_ds.data.prepare.unit import TokenCounts, Unit, read_hashes, read_unit
from mslt_ds.data.store import ARRAYS, DOCUMENTS, GROUPS, SENTENCES, TOKEN_COUNTS, TOKENS

_HASHES_AT_ONCE = 1 << 22
_TO_UNIT = 2.0**-53


@dataclass(frozen=True)
class SourceUnits:
    """The unit files of a source in the order of the text, and its weight."""

    units: Sequence[Path]
    weight: float = 1.0


@dataclass
class MergeCounts:
    """What the store holds of a source, and what was dropped."""

    documents: int = 0  # in the store, with copies
    sentences: int = 0
    tokens: int = 0
    empty_documents: int = 0  # the tokenizer's cleaning left nothing
    duplicate_documents: int = 0  # the same text occurred before
    repeated_documents: int = 0  # further copies, by a weight above 1
    omitted_documents: int = 0  # dropped by a weight below 1

    def add(self, other: MergeCounts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Merged:
    sources: list[MergeCounts]
    tokenized: list[TokenCounts]  # by source: of all that was tokenized, duplicates too
    has_two_texts: bool  # not all documents are the same

    @property
    def total(self) -> MergeCounts:
        total = MergeCounts()
        for counts in self.sources:
            total.add(counts)
        return total


def merge(
    sources: Sequence[SourceUnits], folder: Path, vocab_size: int, *, keep_duplicates: bool = False
) -> Merged:
    """Write the arrays of a store into `folder`."""
    is_first = first_of_their_kind([path for source in sources for path in source.units])
    token_counts = np.zeros(vocab_size, np.int64)
    written = MergeCounts()
    found: list[MergeCounts] = []
    tokenized: list[TokenCounts] = []
    some_group = np.empty(0, np.uint64)
    has_two_texts = False
    offset = 0
    with ExitStack() as files:
        tokens, sentences, documents, groups = (
            files.enter_context((folder / name).open("wb"))
            for name in (TOKENS, SENTENCES, DOCUMENTS, GROUPS)
        )
        for source in sources:
            counts, text_counts = MergeCounts(), TokenCounts()
            for path in source.units:
                unit = read_unit(path)
                is_new = is_first[offset : offset + len(unit.document_lengths)]
                offset += len(is_new)
                has_text = unit.document_lengths > 0
                kept = has_text & (is_new | keep_duplicates)
                copies = np.where(kept, copies_by_weight(unit.document_hashes, source.weight), 0)
                counts.empty_documents += int((~has_text).sum())
                counts.duplicate_documents += int((has_text & ~is_new).sum())
                counts.omitted_documents += int((kept & (copies == 0)).sum())
                counts.repeated_documents += int(np.maximum(copies - 1, 0).sum())
                text_counts.add(unit.counts)
                for copy in range(copies.max(initial=0)):
                    part = _keep(unit, copies > copy)
                    here = MergeCounts(
                        len(part.document_lengths), len(part.sentence_lengths), len(part.tokens)
                    )
                    tokens.write(part.tokens.tobytes())
                    sentences.write((_starts(part.sentence_lengths) + written.tokens).tobytes())
                    documents.write((_starts(part.document_lengths) + written.sentences).tobytes())
                    part_groups = np.ascontiguousarray(part.document_hashes[:, 0])
                    groups.write(part_groups.tobytes())
                    some_group = some_group if len(some_group) else part_groups[:1]
                    has_two_texts = has_two_texts or bool((part_groups != some_group).any())
                    token_counts += np.bincount(part.tokens, minlength=vocab_size)
                    written.add(here)
                    counts.add(here)
            found.append(counts)
            tokenized.append(text_counts)
        sentences.write(np.array([written.tokens], np.int64).tobytes())
        documents.write(np.array([written.sentences], np.int64).tobytes())
    (folder / TOKEN_COUNTS).write_bytes(token_counts.tobytes())
    for name in ARRAYS:
        flush_to_disk(folder / name)
    return Merged(found, tokenized, has_two_texts)


def copies_by_weight(hashes: np.ndarray, weight: float) -> np.ndarray:
    """The number of copies of documents with these hashes, (n,) int64; its mean is `weight`.

    hashes: (n, 2) uint64
    """
    whole = int(weight)
    # The first word identifies the text (groups.bin); the second serves as a random draw.
    drawn = (hashes[:, 1] >> np.uint64(11)) * _TO_UNIT
    return whole + (drawn < weight - whole).astype(np.int64)


def first_of_their_kind(units: Sequence[Path]) -> np.ndarray:
    """Whether each document of all units is the first with its text, (num_documents,) bool."""
    lengths = [len(read_hashes(path)) for path in units]
    is_first = np.zeros(sum(lengths), np.bool_)
    buckets = np.uint64(-(-len(is_first) // _HASHES_AT_ONCE))
    for bucket in range(int(buckets)):
        rows, hashes = [], []
        offset = 0
        for path, length in zip(units, lengths, strict=True):
            all_hashes = read_hashes(path)
            chosen = np.flatnonzero(all_hashes[:, 0] % buckets == bucket)
            rows.append(chosen + offset)
            hashes.append(all_hashes[chosen])
            offset += length
        here = np.concatenate(rows)
        is_first[here[_first_rows(np.concatenate(hashes))]] = True
    return is_first


def _first_rows(hashes: np.ndarray) -> np.ndarray:
    """Rows of `hashes`, (n, 2), that equal no earlier row, (m,) int64."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal rows stay in their order
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    return order[is_new]


def _keep(unit: Unit, documents: np.ndarray) -> Unit:
    """The unit, reduced to the documents that are True in `documents`, (num_documents,) bool."""
    if documents.all():
        return unit
    sentences = np.repeat(documents, unit.document_lengths)
    tokens = np.repeat(sentences, unit.sentence_lengths)
    return Unit(
        unit.document_hashes[documents],
        unit.document_lengths[documents],
        unit.sentence_lengths[sentences],
        unit.tokens[tokens],
        unit.counts,
    )


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where runs of these lengths begin, (n,) int64."""
    starts = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts
