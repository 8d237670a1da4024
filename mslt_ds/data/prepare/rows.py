"""Sources whose rows are documents: Parquet and Hugging Face datasets.

These sources give text as bytes, so that invalid UTF-8 is counted as in text files: writers of Parquet
and Arrow don't check their strings. Files are streamed a few rows at a time; data sets are memory-mapped
by `datasets`.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from mslt_ds.data.prepare.documents import Document, FileSource, TextCounts, documents_of_texts
from mslt_ds.data.prepare.files import fingerprint, import_for, problems_of
from mslt_ds.data.prepare.folder import DEFAULT_SPLIT, check_saved, is_saved, parquet_splits
from mslt_ds.data.prepare.json_rows import DEFAULT_FIELD, choices
from mslt_ds.data.prepare.token_ids import check_ids_type, documents_of_ids
from mslt_ds.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ParquetFile(FileSource):
    """A Parquet file with the text, or with token ids, in the column `field`."""

    field: str = DEFAULT_FIELD
    holds_ids: bool = False

    def check(self) -> None:
        parquet = import_for(self.path, "pyarrow.parquet")
        with self._problems():
            schema = parquet.read_schema(self.path)
        _check_column(self.path, schema, self.field, self.holds_ids)

    def documents(
        self, counts: TextCounts, sha256: hashlib._Hash | None = None
    ) -> Iterator[Document]:
        return _documents(self.path, self._columns(), counts, sha256, self.holds_ids)

    def _columns(self) -> Iterator[pyarrow.Array]:
        parquet = import_for(self.path, "pyarrow.parquet")
        with self._problems(), parquet.ParquetFile(self.path) as file:
            path = _path(file.schema_arrow, self.field)
            # One row group at a time: with all of them pyarrow reads ahead.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(
                    _ROWS_AT_ONCE, row_groups=[group], columns=[".".join(path)], use_threads=False
                ):
                    yield _column(batch.column(0), path)

    def _problems(self) -> Any:
        return problems_of(self.path, import_for(self.path, "pyarrow").ArrowException)


@dataclass(frozen=True)
class HuggingFaceDataset:
    """A data set of the hub (`owner/name` or `owner/name:config`), or a local folder that
    `save_to_disk` wrote or that holds Parquet files. Its text, or token ids, are in the column `field`."""

    location: str
    field: str = DEFAULT_FIELD
    split: str = DEFAULT_SPLIT
    holds_ids: bool = False

    @property
    def name(self) -> str:
        return self.location

    def check(self) -> None:
        _check_column(
            self.location, self._dataset.features.arrow_schema, self.field, self.holds_ids
        )

    def fingerprint(self) -> str:
        sha256 = hashlib.sha256(f"{self.split} {len(self._dataset)}".encode())
        for file in self._dataset.cache_files:
            sha256.update(fingerprint(Path(file["filename"])).encode())
        return sha256.hexdigest()

    def documents(
        self, counts: TextCounts, sha256: hashlib._Hash | None = None
    ) -> Iterator[Document]:
        return _documents(self.location, self._columns(), counts, sha256, self.holds_ids)

    def _columns(self) -> Iterator[pyarrow.Array]:
        path = _path(self._dataset.features.arrow_schema, self.field)
        rows = self._dataset.select_columns(path[:1]).with_format("arrow")
        for table in rows.iter(_ROWS_AT_ONCE):
            for chunk in table.column(0).chunks:  # pyright: ignore[reportAttributeAccessIssue]
                yield _column(chunk, path)

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
                    "parquet", data_files=self._patterns(folder), columns=[self._column(folder)]
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

    def _column(self, folder: Path) -> str:
        """The column of a folder's Parquet files that holds the field."""
        first = next(itertools.chain.from_iterable(parquet_splits(folder).values()))
        schema = import_for(self.location, "pyarrow.parquet").read_schema(first)
        return _path(schema, self.field)[0]

    def _patterns(self, folder: Path) -> dict[str, list[str]]:
        """The checked Parquet files of a folder by split, as the patterns that `load_dataset` takes."""
        splits = parquet_splits(folder)
        for path in itertools.chain.from_iterable(splits.values()):
            ParquetFile(Path(path), self.field, self.holds_ids).check()
        return {split: [glob.escape(path) for path in paths] for split, paths in splits.items()}


def _documents(
    place: object,
    columns: Iterator[pyarrow.Array],
    counts: TextCounts,
    sha256: hashlib._Hash | None,
    holds_ids: bool,
) -> Iterator[Document]:
    if holds_ids:
        return documents_of_ids(place, columns, counts, sha256)
    texts = (text for column in columns for text in _bytes_of(column))
    return documents_of_texts(place, texts, counts, sha256)


def _check_column(place: object, schema: pyarrow.Schema, field: str, holds_ids: bool) -> None:
    if schema.names.count(field) > 1:
        raise DataError(
            f"--input: {place}: {schema.names.count(field)} columns are named {field!r}; rename all but "
            "one of them"
        )
    found = _type_of(place, schema, field)
    if holds_ids:
        check_ids_type(place, field, found)
    elif not _is_text(found):
        raise DataError(f"--input: {place}: column {field!r} holds {found} instead of text")


def _type_of(place: object, schema: pyarrow.Schema, field: str) -> pyarrow.DataType:
    """The type of a column; `a.b` is the field b of the structures in column a. DataError if there is none."""
    import pyarrow

    found: Any = schema
    path = _path(schema, field)
    for depth, name in enumerate(path):
        names = found.names if not depth else [found.field(i).name for i in range(found.num_fields)]
        if name not in names:
            within = f" inside of {'.'.join(path[:depth])!r}" if depth else ""
            raise DataError(f"--input: {place}: no column {name!r}{within}; {choices(names)}")
        found = found.field(name).type
        if pyarrow.types.is_dictionary(found):
            found = found.value_type
    return found


def _path(schema: pyarrow.Schema, field: str) -> list[str]:
    """A column's name, or the names from a column of structures down to one of their fields."""
    return [field] if field in schema.names else field.split(".")


def _is_text(kind: pyarrow.DataType) -> bool:
    """Whether values of the type are strings, or bytes that may hold text in UTF-8."""
    from pyarrow import types

    return (
        types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )  # fmt: skip


def _column(column: Any, path: list[str]) -> Any:
    """The Arrow array of the values at `path`, whose first name is that of `column`."""
    import pyarrow.compute

    compute: Any = pyarrow.compute  # whose functions are made when it is imported
    return compute.struct_field(column, path[1:]) if path[1:] else column


def _bytes_of(column: Any) -> list[bytes | None]:
    """The values of an Arrow array of strings as UTF-8; None for null."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pyarrow.large_binary()).to_pylist()
