"""Units of preparation: a few megabytes of documents, cut, tokenized and written by one worker.

Where units begin depends on the text alone, so the number of workers changes nothing in any of
them. A unit is one file, which is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mslt_ds.data import segment, tokenizer
from mslt_ds.errors import DataError

UNIT_CHARACTERS = 1 << 21
_SENTENCES_PER_BATCH = 4096


@dataclass(frozen=True)
class Unit:
    """Tokenized documents."""

    tokens: np.ndarray  # (num_tokens,) of the store's type
    sentence_lengths: np.ndarray  # (num_sentences,) uint32: tokens
    document_lengths: np.ndarray  # (num_documents,) uint32: sentences, 0 if nothing was left
    document_hashes: np.ndarray  # (num_documents, 2) uint64: of the text

    def parts(self) -> tuple[np.ndarray, ...]:
        return self.tokens, self.sentence_lengths, self.document_lengths, self.document_hashes


def cut_into_units(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Consecutive documents, together just over UNIT_CHARACTERS."""
    unit: list[list[str]] = []
    size = 0
    for document in documents:
        unit.append(document)
        size += sum(map(len, document))
        if size >= UNIT_CHARACTERS:
            yield unit
            unit, size = [], 0
    if unit:
        yield unit


class Worker:
    """Turns units of text into unit files; one in each process."""

    def __init__(self, tokenizer_folder: Path, dtype: np.dtype) -> None:
        self._tokenizer = tokenizer.load(tokenizer_folder)
        self._dtype = dtype

    def process(self, documents: Sequence[list[str]]) -> Unit:
        sentences: list[str] = []
        counts = []
        for document in documents:
            before = len(sentences)
            for paragraph in document:
                sentences += segment.sentences(paragraph)
            counts.append(len(sentences) - before)
        lengths = np.zeros(len(sentences), np.uint32)
        tokens = []
        for first in range(0, len(sentences), _SENTENCES_PER_BATCH):
            batch = self._tokenizer.encode_batch_fast(
                sentences[first : first + _SENTENCES_PER_BATCH], add_special_tokens=False
            )
            for number, encoding in enumerate(batch, first):
                ids = encoding.ids
                lengths[number] = len(ids)
                tokens.append(np.array(ids, self._dtype))
        document_of = np.repeat(np.arange(len(counts)), counts)
        kept = np.bincount(document_of[lengths > 0], minlength=len(counts))
        return Unit(
            np.concatenate(tokens) if tokens else np.empty(0, self._dtype),
            lengths[lengths > 0],
            kept.astype(np.uint32),
            np.array([_hash(document) for document in documents], np.uint64).reshape(-1, 2),
        )


def write_unit(path: Path, unit: Unit) -> None:
    """One line of JSON, then the arrays; its checksum is over the arrays."""
    sha256 = hashlib.sha256()
    for part in unit.parts():
        sha256.update(part.tobytes())
    header = {
        "sha256": sha256.hexdigest(),
        "parts": [[part.dtype.str, list(part.shape)] for part in unit.parts()],
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        for part in unit.parts():
            file.write(part.tobytes())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_unit(path: Path) -> Unit:
    """DataError that names the file if it's damaged."""
    with path.open("rb") as file:
        try:
            header = json.loads(file.readline())
            content = file.read()
            parts = []
            offset = 0
            for dtype, shape in header["parts"]:
                count = int(np.prod(shape, dtype=np.int64))
                parts.append(np.frombuffer(content, dtype, count, offset).reshape(shape))
                offset += parts[-1].nbytes
            if hashlib.sha256(content).hexdigest() != header["sha256"]:
                raise ValueError("its checksum is wrong")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: damaged ({error}); delete it and run the same `mslt-ds prepare` again"
            ) from error
    return Unit(*parts)


def _hash(document: list[str]) -> tuple[int, int]:
    digest = hashlib.blake2b("\n".join(document).encode("utf-8", "replace"), digest_size=16)
    value = digest.digest()
    return int.from_bytes(value[:8], "little"), int.from_bytes(value[8:], "little")
