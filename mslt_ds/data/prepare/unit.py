"""Units of preparation: a few megabytes of documents that one worker segments, tokenizes and writes.

The borders of units depend on the text alone, so the number of workers doesn't affect them. A unit is
one file, complete or absent. It contains a digest of its text, so that a unit of an earlier attempt
is reused only for the same text.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mslt_ds.atomic import flush_to_disk
from mslt_ds.data import tokenizer
from mslt_ds.data.prepare import segment
from mslt_ds.errors import DataError

UNIT_CHARACTERS = 1 << 21
_SENTENCES_PER_BATCH = 4096
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
Documents = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Unit:
    """Tokenized documents."""

    document_hashes: np.ndarray  # (num_documents, 2) uint64: of the text
    document_lengths: np.ndarray  # (num_documents,) uint32: sentences; 0 if no token is left
    sentence_lengths: np.ndarray  # (num_sentences,) uint32: tokens, at least 1
    tokens: np.ndarray  # (num_tokens,) of the store's dtype
    control_characters: int  # in the text; the tokenizer's cleaning removed them


def cut_into_units(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Yields lists of consecutive documents, each just over UNIT_CHARACTERS long."""
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
    """Segments and tokenizes documents; each process has one."""

    def __init__(self, tokenizer_folder: Path, dtype: np.dtype) -> None:
        self._tokenizer = tokenizer.load_for_text(tokenizer_folder)
        self._dtype = dtype

    def process(self, documents: Documents) -> Unit:
        sentences: list[str] = []
        counts = []
        control_characters = 0
        for document in documents:
            before = len(sentences)
            for paragraph in document:
                control_characters += len(_CONTROL.findall(paragraph))
                sentences += segment.sentences(paragraph)
            counts.append(len(sentences) - before)
        lengths = np.zeros(len(sentences), np.uint32)
        tokens = [np.empty(0, self._dtype)]
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
            document_hashes(documents),
            kept.astype(np.uint32),
            lengths[lengths > 0],
            np.concatenate(tokens),
            control_characters,
        )


def document_hashes(documents: Documents) -> np.ndarray:
    """A 128-bit hash of each document's text, (num_documents, 2) uint64."""
    return np.array([_hash(document) for document in documents], np.uint64).reshape(-1, 2)


def text_digest(documents: Documents) -> str:
    """A digest of a unit's text, in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        digest.update("\n".join(document).encode())
        digest.update(b"\n\n")
    return digest.hexdigest()


def write_unit(path: Path, unit: Unit, text: str) -> None:
    """Write a unit: one line of JSON, then the arrays. text: the digest of its text."""
    arrays = [unit.document_hashes, unit.document_lengths, unit.sentence_lengths, unit.tokens]
    content = b"".join(array.tobytes() for array in arrays)
    header = {
        "text": text,
        "sha256": hashlib.sha256(content).hexdigest(),
        "control_characters": unit.control_characters,
        "arrays": [[array.dtype.str, list(array.shape)] for array in arrays],
    }
    # The name is unique to the process: another one may be making the same unit.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(json.dumps(header).encode() + b"\n" + content)
    flush_to_disk(partial)
    partial.replace(path)


def is_unit_of(path: Path, text: str) -> bool:
    """Whether `path` is a complete unit of the text with this digest."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
            size = sum(
                np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in header["arrays"]
            )
            return header["text"] == text and os.fstat(file.fileno()).st_size == file.tell() + size
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_unit(path: Path) -> Unit:
    """The unit at `path`; DataError names the file if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
            content = file.read()
        if hashlib.sha256(content).hexdigest() != header["sha256"]:
            raise ValueError("its checksum is wrong")
        arrays = []
        offset = 0
        for dtype, shape in header["arrays"]:
            count = int(np.prod(shape, dtype=np.int64))
            arrays.append(np.frombuffer(content, dtype, count, offset).reshape(shape))
            offset += arrays[-1].nbytes
        hashes, documents, sentences, tokens = arrays
        return Unit(hashes, documents, sentences, tokens, header["control_characters"])
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run the same `mslt-ds prepare` again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: damaged ({error}); delete it and run the same `mslt-ds prepare` again"
        ) from error


def read_hashes(path: Path) -> np.ndarray:
    """Only the document_hashes of a unit."""
    try:
        with path.open("rb") as file:
            dtype, shape = json.loads(file.readline())["arrays"][0]
            return np.fromfile(file, dtype, int(np.prod(shape))).reshape(shape)
    except (OSError, ValueError, KeyError, TypeError):
        return read_unit(path).document_hashes  # which says what is wrong with it


def _hash(document: Sequence[str]) -> tuple[int, int]:
    value = hashlib.blake2b("\n".join(document).encode(), digest_size=16).digest()
    return int.from_bytes(value[:8], "little"), int.from_bytes(value[8:], "little")
