"""Text files as documents: one paragraph a line, a blank line between documents.

Notable: what a text holds besides text is counted, never passed over in silence. A file in another
encoding than UTF-8 is refused; single damaged paragraphs are read with U+FFFD in the damaged
places, which the tokenizer's cleaning removes. No more than one document is held in memory.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from mslt_ds.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer

LONGEST_DOCUMENT = 64 << 20  # bytes
_CODE_POINTS = 0x110000
_PROBE_BYTES = 1 << 20
_CHARACTERS_PER_COUNT = 1 << 20
# Text in another encoding is wrong nearly everywhere, a damaged file in a few places.
_MOST_INVALID = 0.01
_UNREADABLE = (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)


def _open_zstd(path: Path) -> io.BufferedIOBase:
    return io.BufferedReader(_ZstdFile(path), 1 << 20)


_OPENERS: dict[str, Callable[[Path], io.BufferedIOBase]] = {
    ".txt": lambda path: path.open("rb"),
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
SUFFIXES = tuple(_OPENERS)


@dataclass
class TextCounts:
    """What was found while reading."""

    documents: int = 0
    paragraphs: int = 0
    invalid_utf8_paragraphs: int = 0
    text_bytes: int = 0  # decompressed


class _ZstdFile(io.RawIOBase):
    """A .zst file, decompressed: all its frames, and an EOFError where the last one is cut off.

    `zstandard`'s own reader takes a cut file for a whole one.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._input = b""
        self._output = b""
        self._between_frames = True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Buffer) -> int:
        while not self._output:
            if not self._input:
                self._input = self._file.read(1 << 18)
            if not self._input:
                if self._between_frames:
                    return 0
                raise EOFError("its last frame is cut off")
            self._output = self._frame.decompress(self._input)
            self._between_frames = self._frame.eof
            self._input = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        view = memoryview(buffer)
        size = min(len(view), len(self._output))
        view[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def check_inputs(paths: Sequence[Path]) -> None:
    """DataError unless every path is a text file whose beginning can be read."""
    if not paths:
        raise DataError("--input: no file given; name at least one text file")
    for path in paths:
        if not path.exists():
            raise DataError(f"--input: {path}: no such file")
        if not path.is_file():
            raise DataError(f"--input: {path}: not a file; name the files of a folder one by one")
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"--input: {path}: suffix {path.suffix!r} is not known; rename or convert it to "
                f"one of {', '.join(SUFFIXES)}"
            )
        with _problems_of(path), _OPENERS[path.suffix](path) as file:
            lines = file.read(_PROBE_BYTES).split(b"\n")
        if len(lines) > 1:
            lines.pop()  # it may be cut inside a character
        _refuse_other_encodings(path, sum(not _is_text(line) for line in lines), len(lines))


def fingerprint(path: Path) -> str:
    """A digest of a file's size, ends and a few places between, in hexadecimal digits.

    Tells versions of a file apart without reading all of it.
    """
    size = path.stat().st_size
    sha256 = hashlib.sha256(str(size).encode())
    with _problems_of(path), path.open("rb") as file:
        for i in range(9):
            file.seek(max(0, size - (1 << 16)) * i // 8)
            sha256.update(file.read(1 << 16))
    return sha256.hexdigest()


def read_documents(
    path: Path, counts: TextCounts, sha256: hashlib._Hash | None = None
) -> Iterator[list[str]]:
    """The documents of a text file, each a list of its paragraphs.

    A document has at least one paragraph, a paragraph at least one character besides white space.
    `counts` and `sha256` (of the text, decompressed) are brought up to date on the way.
    """
    paragraphs_before = counts.paragraphs
    invalid_before = counts.invalid_utf8_paragraphs
    document: list[str] = []
    document_bytes = 0
    with _problems_of(path), _OPENERS[path.suffix](path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_DOCUMENT + 1), b""), 1):
            if sha256 is not None:
                sha256.update(line)
            counts.text_bytes += len(line)
            document_bytes += len(line)
            if document_bytes > LONGEST_DOCUMENT:
                raise DataError(
                    f"--input: {path}: the document that reaches line {number} is longer than "
                    f"{LONGEST_DOCUMENT >> 20} MB; put one paragraph on a line and a blank line "
                    "between documents"
                )
            try:
                paragraph = line.decode("utf-8")
            except UnicodeDecodeError:
                paragraph = line.decode("utf-8", "replace")
                counts.invalid_utf8_paragraphs += 1
            if number == 1:
                paragraph = paragraph.removeprefix("\ufeff")
            paragraph = paragraph.strip()
            if paragraph:
                counts.paragraphs += 1
                document.append(paragraph)
                continue
            if document:
                counts.documents += 1
                yield document
            document, document_bytes = [], 0
    if document:
        counts.documents += 1
        yield document
    _refuse_other_encodings(
        path,
        counts.invalid_utf8_paragraphs - invalid_before,
        counts.paragraphs - paragraphs_before,
    )


def count_characters(documents: Iterator[list[str]]) -> np.ndarray:
    """How often each code point occurs, (0x110000,) int64."""
    characters = np.zeros(_CODE_POINTS, np.int64)
    pending: list[str] = []
    size = 0

    def count() -> None:
        text = np.frombuffer("".join(pending).encode("utf-32-le"), "<u4")
        found = np.bincount(text)
        characters[: len(found)] += found

    for document in documents:
        pending += document
        size += sum(map(len, document))
        if size >= _CHARACTERS_PER_COUNT:
            count()
            pending, size = [], 0
    count()
    return characters


@contextmanager
def _problems_of(path: Path) -> Iterator[None]:
    """What can't be read inside this block is told as a problem of `path`."""
    try:
        yield
    except _UNREADABLE as error:
        raise DataError(
            f"--input: {path}: can't be read ({error or type(error).__name__}); check that the "
            "file is whole and its suffix right"
        ) from error


def _is_text(line: bytes) -> bool:
    try:
        return "\0" not in line.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _refuse_other_encodings(path: Path, invalid: int, of: int) -> None:
    if invalid > _MOST_INVALID * of and (invalid > 1 or of == 1):
        raise DataError(
            f"--input: {path}: not UTF-8 text, {invalid} of {of} lines can't be decoded; "
            "convert it first, for example with iconv -t UTF-8"
        )
