"""Documents as lists of paragraphs or token ids: the interface of all sources, and plain text files.

Defects of a text are counted and reported. A source in another encoding than UTF-8 is an error; in
single damaged paragraphs the damaged bytes become U+FFFD, which the tokenizer removes. Sources are
streamed: at most one document is in memory.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mslt_ds.data.prepare.files import COMPRESSIONS, fingerprint, first_lines, open_input, unpacked
from mslt_ds.errors import DataError

LONGEST_DOCUMENT = 64 << 20  # bytes
_CODE_POINTS = 0x110000
_CHARACTERS_PER_COUNT = 1 << 20
# The largest share of invalid lines that is taken for damage, rather than another encoding.
_MOST_INVALID = 0.01
_MOST_NULS = 0.1  # of the bytes


@dataclass
class TextCounts:
    """What reading a source has found."""

    documents: int = 0  # with text
    paragraphs: int = 0
    empty_documents: int = 0  # rows and pages without text
    skipped_pages: int = 0  # of a Wikipedia dump: redirects, and what isn't an article
    deeply_nested_pages: int = 0  # of a Wikipedia dump: beyond what can be parsed, and left out
    invalid_utf8_paragraphs: int = 0
    text_bytes: int = 0  # decompressed

    def add(self, other: TextCounts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True, eq=False)
class TokenRun:
    """Token ids of a document that is tokenized already. place: of its row, for errors"""

    ids: np.ndarray  # (n,) int64, n at least 1
    is_sentence: bool
    place: str

    def __len__(self) -> int:
        return len(self.ids)


Document = Sequence[str] | Sequence[TokenRun]
"""The paragraphs of a document, each with a character besides white space; or its token ids."""


class Source(Protocol):
    """Documents from one file or data set, each with at least one paragraph."""

    @property
    def name(self) -> str:
        """Its name in reports."""
        ...

    def check(self) -> None:
        """Read its beginning; DataError if that fails."""
        ...

    def fingerprint(self) -> str:
        """A digest that differs between versions of the source, in hexadecimal digits."""
        ...

    def documents(
        self, counts: TextCounts, sha256: hashlib._Hash | None = None
    ) -> Iterator[Document]:
        """Yields all documents in order, and updates `counts` and `sha256` (of the text)."""
        ...


@dataclass(frozen=True)
class FileSource:
    """A source that is a file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def fingerprint(self) -> str:
        return fingerprint(self.path)


@dataclass(frozen=True)
class TextFile(FileSource):
    """A text file with one paragraph on a line and a blank line between documents."""

    def check(self) -> None:
        lines = first_lines(self.path)
        check_encoding(self.path, lines)
        if lines[0].startswith(b'{"') and lines[0].rstrip().endswith(b"}"):
            raise DataError(
                f"--input: {self.path}: JSON lines in a file that's named as plain text; rename it to "
                f"{self.path.stem.removesuffix('.txt')}.jsonl"
                f"{self.path.suffix if self.path.suffix in COMPRESSIONS else ''}"
            )

    def documents(
        self, counts: TextCounts, sha256: hashlib._Hash | None = None
    ) -> Iterator[list[str]]:
        before = counts.invalid_utf8_paragraphs, counts.paragraphs
        document: list[str] = []
        document_bytes = 0
        with open_input(self.path) as file:
            lines = iter(lambda: file.readline(LONGEST_DOCUMENT + 1), b"")
            for number, line in enumerate(lines, 1):
                if sha256 is not None:
                    sha256.update(line)
                counts.text_bytes += len(line)
                document_bytes += len(line)
                if document_bytes > LONGEST_DOCUMENT:
                    raise DataError(
                        f"--input: {self.path}: the document that reaches line {number} is longer "
                        f"than {LONGEST_DOCUMENT >> 20} MB; put one paragraph on a line and a blank "
                        "line between documents"
                    )
                if paragraph := read_paragraph(line, counts, is_first=number == 1):
                    document.append(paragraph)
                    continue
                if document:
                    counts.documents += 1
                    yield document
                document, document_bytes = [], 0
        if document:
            counts.documents += 1
            yield document
        refuse_other_encodings(
            self.path,
            counts.invalid_utf8_paragraphs - before[0],
            counts.paragraphs - before[1],
        )


def is_text_file(path: Path) -> bool:
    """Whether the suffix is `.txt`, plain or compressed, or that of a compression alone."""
    suffix = unpacked(path).suffix
    return suffix == ".txt" or (suffix == "" and path.suffix in COMPRESSIONS)


class FileOfTexts(FileSource, ABC):
    """A file that holds many texts, each of them a document."""

    @abstractmethod
    def texts(self, counts: TextCounts) -> Iterator[bytes | None]:
        """Yields the texts in order in UTF-8, None for a missing one. What else is found is counted."""

    def documents(
        self, counts: TextCounts, sha256: hashlib._Hash | None = None
    ) -> Iterator[list[str]]:
        return documents_of_texts(self.path, self.texts(counts), counts, sha256)


def documents_of_texts(
    place: object,
    texts: Iterable[bytes | None],
    counts: TextCounts,
    sha256: hashlib._Hash | None,
) -> Iterator[list[str]]:
    """Yields a document for each text in UTF-8. Its lines are paragraphs; blank lines are skipped.

    DataError names `place` and the document's number if it exceeds LONGEST_DOCUMENT.
    """
    before = counts.invalid_utf8_paragraphs, counts.paragraphs
    for number, text in enumerate(texts, 1):
        text = text or b""
        if len(text) > LONGEST_DOCUMENT:
            raise DataError(
                f"--input: {place}: document {number} is longer than {LONGEST_DOCUMENT >> 20} MB; "
                "split it"
            )
        counts.text_bytes += len(text)
        if sha256 is not None:
            sha256.update(b"%d\n" % len(text) + text)
        document = [
            paragraph for line in text.split(b"\n") if (paragraph := read_paragraph(line, counts))
        ]
        if document:
            counts.documents += 1
            yield document
        else:
            counts.empty_documents += 1
    refuse_other_encodings(
        place, counts.invalid_utf8_paragraphs - before[0], counts.paragraphs - before[1]
    )


def read_paragraph(line: bytes, counts: TextCounts, *, is_first: bool = False) -> str:
    """A line, decoded and stripped. is_first: of a file, where a byte order mark is removed."""
    paragraph = decode(line, counts)
    if is_first:
        paragraph = paragraph.removeprefix("\ufeff")
    paragraph = paragraph.strip()
    if paragraph:
        counts.paragraphs += 1
    return paragraph


def decode(line: bytes, counts: TextCounts) -> str:
    """The line as text. Bytes that aren't UTF-8 become U+FFFD, and the line is counted."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        counts.invalid_utf8_paragraphs += 1
        return line.decode("utf-8", "replace")


def check_encoding(place: object, lines: list[bytes]) -> None:
    """DataError if the first lines of a file aren't text in UTF-8.

    A few NUL characters are control characters like others, which the tokenizer removes. Many come from
    UTF-16 or UTF-32, whose Latin text would pass for UTF-8.
    """
    size, nuls = sum(map(len, lines)), sum(line.count(0) for line in lines)
    if nuls > _MOST_NULS * size:
        raise DataError(
            f"--input: {place}: not UTF-8 text, {nuls:,} of its first {size:,} bytes are NUL, as in UTF-16 "
            "or in binary files; convert it first, for example with iconv -f UTF-16 -t UTF-8"
        )
    invalid = sum(not _is_utf8(line) for line in lines)
    refuse_other_encodings(place, invalid, len(lines))


def refuse_other_encodings(place: object, invalid: int, of: int) -> None:
    """DataError if more of the lines are invalid than damage explains."""
    if invalid > _MOST_INVALID * of and (invalid > 1 or of == 1):
        raise DataError(
            f"--input: {place}: not UTF-8 text, {invalid} of {of} lines can't be decoded; "
            "convert it first, for example with iconv -t UTF-8"
        )


def count_characters(documents: Iterator[Document]) -> np.ndarray:
    """How often each code point occurs, (0x110000,) int64."""
    characters = np.zeros(_CODE_POINTS, np.int64)
    pending: list[str] = []
    size = 0

    def count() -> None:
        text = np.frombuffer("".join(pending).encode("utf-32-le"), "<u4")
        found = np.bincount(text)
        characters[: len(found)] += found

    for document in documents:
        paragraphs = [part for part in document if isinstance(part, str)]
        pending += paragraphs
        size += sum(map(len, paragraphs))
        if size >= _CHARACTERS_PER_COUNT:
            count()
            pending, size = [], 0
    count()
    return characters


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
