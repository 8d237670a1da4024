"""Sources whose rows are documents: JSON lines, Parquet, Hugging Face datasets.

These sources give text as bytes, so that invalid UTF-8 is counted as in text files: writers of Parquet
and Arrow don't check their strings, and JSON can hold halves of surrogate pairs. Files are streamed by
line or a few rows at a time; data sets are memory-mapped by `datasets`.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from mslt_ds.data.prepare.documents import (
    LONGEST_DOCUMENT,
    FileOfTexts,
    TextCounts,
    check_encoding,
    decode,
    documents_of_texts,
)
from mslt_ds.data.prepare.files import (
    PROBE_BYTES,
    fingerprint,
    first_lines,
    import_for,
    open_input,
    problems_of,
    unpacked,
)
from mslt_ds.data.prepare.folder import DEFAULT_SPLIT, check_saved, is_saved, parquet_splits
from mslt_ds.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

DEFAULT_FIELD = "text"
_ROWS_AT_ONCE = 64
_JSON = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True)
class JsonLines(FileOfTexts):
    """A file with a JSON object on each line, whose key `field` holds the text or null."""

    field: str = DEFAULT_FIELD

    def check(self) -> None:
        lines = first_lines(self.path)
        check_encoding(self.path, lines)
        for number, line in enumerate(lines, 1):
            if line.strip() and len(line) < PROBE_BYTES:
                self._text(line, number, TextCounts())

    def texts(self, counts: TextCounts) -> Iterator[bytes | None]:
        with open_input(self.path) as file:
            lines = iter(lambda: file.readline(2 * LONGEST_DOCUMENT), b"")
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield self._text(line, number, counts)

    def _text(self, line: bytes, number: int, counts: TextCounts) -> bytes | None:
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        text_line = decode(line, counts)
        place = f"--input: {self.path}: line {number}"
        try:
            row = json.loads(text_line)
        except RecursionError:
            raise DataError(
                f"{place} nests lists or objects too deeply to be read (Python's limit is about "
                f"{sys.getrecursionlimit():,} levels); leave out that key, or the line"
            ) from None
        except ValueError as error:
            raise DataError(
                f"{place} isn't JSON ({error}); one object a line is expected, shorter than "
                f"{LONGEST_DOCUMENT >> 19} MB"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{place} is a JSON {type(row).__name__}; one object a line is expected, with the "
                f"text under {self.field!r}"
            )
        if self.field not in row:
            raise DataError(f"{place} has no key {self.field!r}; {_choices(row)}")
        text = row[self.field]
        if text is not None and not isinstance(text, str):
            raise DataError(f"{place}: {self.field!r} is a {type(text).__name__} instead of text")
        # Half a surrogate pair has no UTF-8 form; it is counted when the bytes are decoded.
        return None if text is None else text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class ParquetFile(FileOfTexts):
    """A Parquet file with the text in the column `field`."""

    field: str = DEFAULT_FIELD

    def check(self) -> None:
        parquet = import_for(self.path, "pyarrow.parquet")
        with self._problems():
            schema = parquet.read_schema(self.path)
        _check_column(self.path, schema, self.field)

    def texts(self, counts: TextCounts) -> Iterator[bytes | None]:
        parquet = import_for(self.path, "pyarrow.parquet")
        with self._problems(), parquet.ParquetFile(self.path) as file:
            # One row group at a time: with all of them pyarrow reads ahead.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(
                    _ROWS_AT_ONCE, row_groups=[group], columns=[self.field], use_threads=False
                ):
                    yield from _bytes_of(batch.column(0))

    def _problems(self) -> Any:
        return problems_of(self.path, import_for(self.path, "pyarrow").ArrowException)


@dataclass(frozen=True)
class HuggingFaceDataset:
    """A data set of the hub (`owner/name` or `owner/name:config`), or a local folder that
    `save_to_disk` wrote or that holds Parquet files. Its text is in the column `field`."""

    location: str
    field: str = DEFAULT_FIELD
    split: str = DEFAULT_SPLIT

    @property
    def name(self) -> str:
        return self.location

    def check(self) -> None:
        _check_column(self.location, self._dataset.features.arrow_schema, self.field)

    def fingerprint(self) -> str:
        sha256 = hashlib.sha256(f"{self.split} {len(self._dataset)}".encode())
        for file in self._dataset.cache_files:
            sha256.update(fingerprint(Path(file["filename"])).encode())
        return sha256.hexdigest()

    def documents(
        self, counts: TextCounts, sha256: hashlib._Hash | None = None
    ) -> Iterator[list[str]]:
        return documents_of_texts(self.location, self._texts(), counts, sha256)

    def _texts(self) -> Iterator[bytes | None]:
        rows = self._dataset.select_columns([self.field]).with_format("arrow")
        for table in rows.iter(_ROWS_AT_ONCE):
            for chunk in table.column(0).chunks:  # pyright: ignore[reportAttributeAccessIssue]
                yield from _bytes_of(chunk)

    @cached_property
    def _dataset(self) -> Dataset:
        datasets = import_for(self.location, "datasets")
        folder = Path(self.location)
        try:
            if is_saved(folder):
                check_saved(folder)
                found = datasets.load_from_disk(self.location)
            elif folder.is_dir():
                found = datasets.load_dataset(
                    "parquet", data_files=self._patterns(folder), columns=[self.field]
                )
            else:
                path, _, config = self.location.partition(":")
                found = datasets.load_dataset(path, config or None)
        except DataError:
            raise
        except Exception as error:  # of the network, the hub or the format
            raise DataError(
                f"--input: {self.location}: can't be loaded as a data set "
                f"({type(error).__name__}: {shorten(str(error), 1000)}); a "
                "data set of the hub is named owner/name or owner/name:config and needs the "
                "network the first time; a folder has to hold Parquet files or a data set that "
                "save_to_disk wrote"
            ) from error
        if not isinstance(found, dict):
            return found
        if self.split not in found:
            raise DataError(
                f"--input: {self.location}: no split {self.split!r}; choose one of "
                f"{', '.join(found)} by {self.location},split=NAME"
            )
        return found[self.split]

    def _patterns(self, folder: Path) -> dict[str, list[str]]:
        """The checked Parquet files of a folder by split, as the patterns that `load_dataset` takes."""
        splits = parquet_splits(folder)
        for path in itertools.chain.from_iterable(splits.values()):
            ParquetFile(Path(path), self.field).check()
        return {split: [glob.escape(path) for path in paths] for split, paths in splits.items()}


def is_json(path: Path) -> bool:
    return unpacked(path).suffix in _JSON


def _check_column(place: object, schema: pyarrow.Schema, field: str) -> None:
    import pyarrow

    if field not in schema.names:
        raise DataError(f"--input: {place}: no column {field!r}; {_choices(schema.names)}")
    if schema.names.count(field) > 1:
        raise DataError(
            f"--input: {place}: {schema.names.count(field)} columns are named {field!r}; rename all but "
            "one of them"
        )
    found = schema.field(field).type
    if pyarrow.types.is_dictionary(found):
        found = found.value_type
    if not any(
        is_text(found)
        for is_text in (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_string_view,
        )
    ):
        raise DataError(f"--input: {place}: column {field!r} holds {found} instead of text")


def _bytes_of(column: Any) -> list[bytes | None]:
    """The values of an Arrow array of strings as UTF-8; None for null."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pyarrow.large_binary()).to_pylist()


def _choices(names: Any) -> str:
    return f"it has {', '.join(map(str, names)) or 'none'}; choose one by PATH,field=NAME"
