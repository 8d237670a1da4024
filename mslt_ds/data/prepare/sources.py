"""The inputs that `--input` names: sources of any kind, each with a weight.

An input is LOCATION[,weight=W][,field=NAME or ,ids=NAME][,split=NAME]. The location is a file whose suffix
determines its kind, a glob of such files, the folder of a data set, or the name of one of the hub.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mslt_ds.data.prepare.documents import Document, Source, TextCounts, TextFile, is_text_file
from mslt_ds.data.prepare.files import COMPRESSIONS, unpacked
from mslt_ds.data.prepare.json_rows import JsonFile, is_json
from mslt_ds.data.prepare.merge import copies_by_weight
from mslt_ds.data.prepare.rows import HuggingFaceDataset, ParquetFile
from mslt_ds.data.prepare.unit import document_hashes
from mslt_ds.data.prepare.wikipedia import WikipediaDump, is_dump
from mslt_ds.errors import DataError

_MOST_WEIGHT = 1000
_OPTIONS = ("weight", "field", "ids", "split")
_OPTION = re.compile(r"(.+),([^,=/]*)=([^,]*)", re.DOTALL)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_KINDS = (
    "text (.txt), JSON (.jsonl, .json, .ndjson), a Wikipedia dump (.xml), each plain or "
    f"{', '.join(COMPRESSIONS)}, or Parquet (.parquet)"
)


@dataclass(frozen=True)
class Input:
    """A source and its weight: how often each of its documents appears on average."""

    source: Source
    weight: float = 1.0

    @property
    def holds_ids(self) -> bool:
        """Whether its documents are token ids instead of text."""
        return getattr(self.source, "holds_ids", False)

    def describe(self) -> dict[str, Any]:
        """Everything about the input that the content of the store depends on."""
        source = self.source
        options = {name: getattr(source, name, None) for name in ("field", "split")}
        if self.holds_ids:
            options["holds_ids"] = True
        return {
            "name": source.name,
            "weight": self.weight,
            **{name: value for name, value in options.items() if value is not None},
            "fingerprint": source.fingerprint(),
        }


def find_inputs(given: Sequence[str | Path]) -> list[Input]:
    """The inputs `given`, with globs expanded in alphabetical order; DataError for the first one that
    can't be read."""
    if not given:
        raise DataError("--input: none given; name at least one file or data set")
    inputs = [found for one in given for found in _parse(str(one))]
    for found in inputs:
        found.source.check()
    return inputs


def weighted_documents(inputs: Sequence[Input], counts: TextCounts) -> Iterator[Document]:
    """Yields the documents of all inputs, each as often as its weight demands, with duplicates."""
    for found in inputs:
        for document in found.source.documents(counts):
            copies = 1
            if found.weight != 1:
                copies = int(copies_by_weight(document_hashes([document]), found.weight)[0])
            for _ in range(copies):
                yield document


def _parse(given: str) -> Iterator[Input]:
    location = given
    options: dict[str, Any] = {}
    # The name of an existing file may look like an option.
    while not (places := _places(location)) and (match := _OPTION.fullmatch(location)):
        location, name, value = match.groups()
        if name not in _OPTIONS:
            raise DataError(
                f"--input: {given}: no such file, and no option {name!r}; the options are "
                f"{', '.join(_OPTIONS)}"
            )
        if name in options:
            raise DataError(f"--input: {given}: {name} is given twice")
        options[name] = value
    if not places and glob.has_magic(location):
        raise DataError(f"--input: {location}: no file is named so")
    weight = _weight(given, options.pop("weight", "1"))
    if "ids" in options:
        if "field" in options:
            raise DataError(f"--input: {given}: field and ids; leave out the one that isn't meant")
        options |= {"field": options.pop("ids"), "holds_ids": True}
    for place in places or [location]:
        yield Input(_source(place, options), weight)


def _weight(given: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= _MOST_WEIGHT:
        raise DataError(
            f"--input: {given}: weight {text!r}; it's how often each document appears, above "
            f"0 and up to {_MOST_WEIGHT}, for example 2.5 or 0.1"
        )
    return weight


def _places(location: str) -> list[str]:
    """The file or folder with this name, or the files that match the glob."""
    if Path(location).exists():
        return [location]
    return sorted(path for path in glob.glob(location, recursive=True) if Path(path).is_file())


def _source(location: str, options: dict[str, Any]) -> Source:
    path = Path(location)
    if path.is_dir():
        return HuggingFaceDataset(str(path), **options)
    if not path.exists():
        if _HUB_NAME.fullmatch(location) and _kind(path) is None:
            return HuggingFaceDataset(location, **options)
        raise DataError(f"--input: {path}: no such file")
    if not path.is_file():
        raise DataError(f"--input: {path}: neither a file nor a folder")
    kind = _kind(path)
    if kind is None:
        suffix = path.name.removeprefix(unpacked(path).stem)
        raise DataError(f"--input: {path}: suffix {suffix!r} is not known; expected {_KINDS}")
    known = {JsonFile: {"field"}, ParquetFile: {"field", "holds_ids"}}.get(kind, set())
    if "holds_ids" in options and "holds_ids" not in known:
        raise DataError(f"--input: {path}: ids; only Parquet files and data sets hold token ids")
    if unknown := set(options) - known:
        raise DataError(f"--input: {path}: this kind of file has no {' and no '.join(unknown)}")
    return kind(path, **options)


def _kind(path: Path) -> Any:
    if is_json(path):
        return JsonFile
    if is_dump(path):
        return WikipediaDump
    if path.suffix == ".parquet":
        return ParquetFile
    return TextFile if is_text_file(path) else None
