"""Units of preparation: a few megabytes of documents that one worker segments, tokenizes and writes.

The borders of units depend on the text alone, so the number of workers doesn't affect them. A unit is
one file, complete or absent. It contains a digest of its text, so that a unit of an earlier attempt
is reused only for the same text.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from mslt_ds.atomic import flush_to_disk
from mslt_ds.data.prepare import segment
from mslt_ds.data.prepare.documents import Document, TokenRun
from mslt_ds.data.prepare.token_ids import SentenceCutter
from mslt_ds.data.tokenizer import TextEncoder
from mslt_ds.errors import DataError

UNIT_CHARACTERS = 1 << 21
_SENTENCES_PER_BATCH = 4096
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LONGEST_WORDS, _LONGEST_SHOWN = 5, 1000
Documents = Sequence[Document]


@dataclass
class TokenCounts:
    """What tokenizing a text has found. Words are what stands between blanks."""

    characters: int = 0
    words: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    control_characters: int = 0  # the tokenizer's cleaning removed them
    longest_words: list[str] = field(default_factory=list)  # in characters; cut at _LONGEST_SHOWN

    def add(self, other: TokenCounts) -> None:
        for name, value in vars(other).items():
            if name != "longest_words":
                setattr(self, name, getattr(self, name) + value)
        self._add_words(other.longest_words)

    def add_paragraph(self, paragraph: str) -> None:
        words = paragraph.split()
        self.characters += len(paragraph)
        self.words += len(words)
        self.control_characters += len(_CONTROL.findall(paragraph))
        if not self._has_longest or len(max(words, key=len, default="")) > len(
            self.longest_words[-1]
        ):
            self._add_words(word[:_LONGEST_SHOWN] for word in words)

    @property
    def _has_longest(self) -> bool:
        return len(self.longest_words) == _LONGEST_WORDS

    def _add_words(self, words: Iterable[str]) -> None:
        distinct = {*self.longest_words, *words}
        self.longest_words = heapq.nsmallest(
            _LONGEST_WORDS, distinct, key=lambda word: (-len(word), word)
        )


@dataclass(frozen=True)
class Unit:
    """Tokenized documents."""

    document_hashes: np.ndarray  # (num_documents, 2) uint64: of the text
    document_lengths: np.ndarray  # (num_documents,) uint32: sentences; 0 if no token is left
    sentence_lengths: np.ndarray  # (num_sentences,) uint32: tokens, at least 1
    tokens: np.ndarray  # (num_tokens,) of the store's dtype
    counts: TokenCounts


def cut_into_units(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yields lists of consecutive documents, each just over UNIT_CHARACTERS (or token ids) long."""
    unit: list[Document] = []
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

    def __init__(self, tokenizer_folder: Path, dtype: np.dtype, language: str) -> None:
        self._encoder = TextEncoder(tokenizer_folder)
        self._dtype = dtype
        self._language = language

    def process(self, documents: Documents) -> Unit:
        counts = TokenCounts()
        # (the document's number, ids) of each sentence, which may be empty
        sentences = [
            (number, np.array(ids, self._dtype))
            for number, ids in itertools.chain(
                self._sentences_of_text(documents, counts), self._sentences_of_ids(documents)
            )
        ]
        lengths = np.array([len(ids) for _, ids in sentences], np.uint32)
        tokens = np.concatenate([np.empty(0, self._dtype), *(ids for _, ids in sentences)])
        counts.tokens = len(tokens)
        if self._encoder.unknown_id is not None:
            counts.unknown_tokens = int((tokens == self._encoder.unknown_id).sum())
        document_of = np.array([number for number, _ in sentences], np.int64)
        kept = np.bincount(document_of[lengths > 0], minlength=len(documents))
        return Unit(
            document_hashes(documents),
            kept.astype(np.uint32),
            lengths[lengths > 0],
            tokens,
            counts,
        )

    def _sentences_of_text(
        self, documents: Documents, counts: TokenCounts
    ) -> Iterator[tuple[int, list[int]]]:
        sentences: list[tuple[int, str, bool]] = []  # with whether it follows another
        for number, document in enumerate(documents):
            follows = False
            for paragraph in document:
                if isinstance(paragraph, str):
                    counts.add_paragraph(paragraph)
                    for sentence in segment.sentences(paragraph, self._language):
                        sentences.append((number, sentence, follows))
                        follows = True
        for first in range(0, len(sentences), _SENTENCES_PER_BATCH):
            batch = sentences[first : first + _SENTENCES_PER_BATCH]
            ids = self._encoder.encode(
                [text for _, text, _ in batch], [after for *_, after in batch]
            )
            yield from zip((number for number, *_ in batch), ids, strict=True)

    def _sentences_of_ids(self, documents: Documents) -> Iterator[tuple[int, np.ndarray]]:
        for number, document in enumerate(documents):
            for run in document:
                if isinstance(run, TokenRun):
                    for ids in self._cutter.sentences(run):
                        yield number, ids

    @cached_property
    def _cutter(self) -> SentenceCutter:
        return SentenceCutter(self._encoder.tokenizer)


def document_hashes(documents: Documents) -> np.ndarray:
    """A 128-bit hash of each document's text, (num_documents, 2) uint64."""
    return np.array([_hash(document) for document in documents], np.uint64).reshape(-1, 2)


def text_digest(documents: Documents) -> str:
    """A digest of a unit's text, in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        digest.update(_content(document))
        digest.update(b"\n\n")
    return digest.hexdigest()


def write_unit(path: Path, unit: Unit, text: str) -> None:
    """Write a unit: one line of JSON, then the arrays. text: the digest of its text."""
    arrays = [unit.document_hashes, unit.document_lengths, unit.sentence_lengths, unit.tokens]
    content = b"".join(array.tobytes() for array in arrays)
    header = {
        "text": text,
        "sha256": hashlib.sha256(content).hexdigest(),
        "counts": asdict(unit.counts),
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
        return Unit(hashes, documents, sentences, tokens, TokenCounts(**header["counts"]))
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


def _hash(document: Document) -> tuple[int, int]:
    value = hashlib.blake2b(_content(document), digest_size=16).digest()
    return int.from_bytes(value[:8], "little"), int.from_bytes(value[8:], "little")


def _content(document: Document) -> bytes:
    parts = (part.encode() if isinstance(part, str) else part.ids.tobytes() for part in document)
    return b"\n".join(parts)
