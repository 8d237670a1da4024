"""Text files as documents: one paragraph a line, a blank line between documents.

Notable: what a text holds besides text is counted, never passed over in silence. A file in another
encoding than UTF-8 is refused; single damaged paragraphs are read with U+FFFD in the damaged
places, which the tokenizer's cleaning removes.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

from mslt_ds.errors import DataError

_CODE_POINTS = 0x110000
_PROBE_BYTES = 1 << 20
# Text in another encoding is wrong nearly everywhere, a damaged file in a few places.
_MOST_INVALID = 0.01
_DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)


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


@dataclass(frozen=True)
class Source:
    """A text file that was read to its end."""

    name: str
    num_bytes: int  # of text, decompressed
    sha256: str  # of the text, decompressed


@dataclass
class TextCounts:
    """What was found while reading."""

    documents: int = 0
    paragraphs: int = 0
    invalid_utf8_paragraphs: int = 0
    control_characters: int = 0
    num_bytes: int = 0  # decompressed


class _ZstdFile(io.RawIOBase):
    """A .zst file, decompressed: all its frames, and an EOFError where the last one is cut off."""

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

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._output:
            if not self._input:
                self._input = self._file.read(1 << 18)
            if not self._input:
                if self._between_frames:
                    return 0
                raise EOFError("the last frame is cut off")
            self._output = self._frame.decompress(self._input)
            self._between_frames = self._frame.eof
            self._input = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
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
            beginning = file.read(_PROBE_BYTES)
        lines = beginning.split(b"\n")
        # The last line may be cut inside a character.
        lines = lines[:-1] or lines
        _refuse_other_encodings(path, sum(not _is_utf8(line) for line in lines), len(lines))


def read_documents(path: Path, counts: TextCounts) -> Iterator[list[str]]:
    """The documents of a text file, each a list of its paragraphs; `counts` is added to.

    A document has at least one paragraph, a paragraph at least one character besides white space.
    """
    return _read(path, counts, None)


def scan(path: Path, counts: TextCounts, characters: np.ndarray | None = None) -> Source:
    """Read a whole file, count what's in it into `counts` and `characters`: how often each code
    point occurs, (0x110000,) int64."""
    sha256 = hashlib.sha256()
    before = counts.num_bytes
    for document in _read(path, counts, sha256):
        if characters is not None:
            text = np.frombuffer("".join(document).encode("utf-32-le", "replace"), "<u4")
            found = np.bincount(text)
            characters[: len(found)] += found
    return Source(path.name, counts.num_bytes - before, sha256.hexdigest())


def new_character_counts() -> np.ndarray:
    return np.zeros(_CODE_POINTS, np.int64)


class _problems_of:
    """What goes wrong inside this block is told as a problem of `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, _DAMAGED):
            raise DataError(
                f"--input: {self._path}: can't be read ({error or type(error).__name__}); "
                "check that the file is whole and its suffix right"
            ) from error


def _read(path: Path, counts: TextCounts, sha256: hashlib._Hash | None) -> Iterator[list[str]]:
    paragraphs_before = counts.paragraphs
    invalid_before = counts.invalid_utf8_paragraphs
    document: list[str] = []
    first = True
    with _problems_of(path), _OPENERS[path.suffix](path) as file:
        for line in file:
            if sha256 is not None:
                sha256.update(line)
            counts.num_bytes += len(line)
            try:
                paragraph = line.decode("utf-8")
            except UnicodeDecodeError:
                paragraph = line.decode("utf-8", "replace")
                counts.invalid_utf8_paragraphs += 1
            if first:
                paragraph = paragraph.removeprefix("\ufeff")
                first = False
            paragraph = paragraph.strip()
            if paragraph:
                counts.paragraphs += 1
                document.append(paragraph)
            elif document:
                counts.documents += 1
                yield document
                document = []
    if document:
        counts.documents += 1
        yield document
    _refuse_other_encodings(
        path,
        counts.invalid_utf8_paragraphs - invalid_before,
        counts.paragraphs - paragraphs_before,
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in line


def _refuse_other_encodings(path: Path, invalid: int, of: int) -> None:
    if invalid > 1 and invalid > _MOST_INVALID * of:
        raise DataError(
            f"--input: {path}: not UTF-8 text, {invalid} of {of} lines can't be decoded; "
            "convert it first, for example with iconv -t UTF-8"
        )
