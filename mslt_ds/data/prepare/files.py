"""Input files as bytes: decompressed according to their suffix, and their fingerprints."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from mslt_ds.errors import DataError, EnvironmentProblem

if TYPE_CHECKING:
    from typing_extensions import Buffer

PROBE_BYTES = 1 << 20
_UNREADABLE = (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
_OPENERS: dict[str, Callable[[Path], io.BufferedIOBase]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda path: io.BufferedReader(_ZstdFile(path), 1 << 20),
}
COMPRESSIONS = tuple(_OPENERS)


class _ZstdFile(io.RawIOBase):
    """All frames of a .zst file, decompressed; EOFError if the last frame is truncated.

    The reader of `zstandard` takes a truncated file for a complete one.
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
                raise EOFError("its last frame is truncated")
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


def unpacked(path: Path) -> Path:
    """The path without the suffix of its compression, if any."""
    return path.with_suffix("") if path.suffix in COMPRESSIONS else path


@contextmanager
def open_input(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file, decompressed. DataError names it if it can't be read."""
    with problems_of(path), _OPENERS.get(path.suffix, lambda path: path.open("rb"))(path) as file:
        yield file


def first_lines(path: Path) -> list[bytes]:
    """The complete lines in the file's first PROBE_BYTES, or the beginning of a longer first line."""
    with open_input(path) as file:
        lines = file.read(PROBE_BYTES).split(b"\n")
    if len(lines) > 1:
        lines.pop()  # it may end inside a character
    return lines


def fingerprint(path: Path) -> str:
    """A digest of a file's size, its beginning and end and seven places between, in hexadecimal digits.

    It distinguishes versions of a file without reading all of it.
    """
    size = path.stat().st_size
    sha256 = hashlib.sha256(str(size).encode())
    with problems_of(path), path.open("rb") as file:
        for i in range(9):
            file.seek(max(0, size - (1 << 16)) * i // 8)
            sha256.update(file.read(1 << 16))
    return sha256.hexdigest()


@contextmanager
def problems_of(path: Path, *also: type[Exception]) -> Iterator[None]:
    """Turn errors of reading inside this block into a DataError that names `path`.

    also: further exceptions that a library raises
    """
    try:
        yield
    except (*_UNREADABLE, *also) as error:
        raise DataError(
            f"--input: {path}: can't be read ({error or type(error).__name__}); check that the "
            "file is whole and its suffix right"
        ) from error


def import_for(place: object, module: str) -> Any:
    """The optional library that reads the input `place`; EnvironmentProblem if it isn't installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentProblem(
            f"--input: {place}: {module} is needed to read it ({error}); "
            "pip install 'mslt-ds[sources]'"
        ) from error
