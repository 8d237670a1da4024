"""JSON files as sources: an object on each line, or one array of objects.

Objects are read one at a time. The text is given as bytes, so that invalid UTF-8 is counted as in text
files: JSON can hold halves of surrogate pairs, too.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mslt_ds.data.prepare.documents import (
    LONGEST_DOCUMENT,
    FileOfTexts,
    TextCounts,
    check_encoding,
)
from mslt_ds.data.prepare.files import PROBE_BYTES, first_lines, open_input, unpacked
from mslt_ds.errors import DataError

DEFAULT_FIELD = "text"
_SUFFIXES = (".jsonl", ".json", ".ndjson")
_MARK = b"\xef\xbb\xbf"
_OBJECTS_CHECKED = 100
_BETWEEN = re.compile(r"[\s,]*")


class _TwiceError(Exception):
    """A JSON object has a key twice."""


@dataclass(frozen=True)
class JsonFile(FileOfTexts):
    """A file of JSON objects whose key `field` holds the text or null; `a.b` is the key b inside of a."""

    field: str = DEFAULT_FIELD

    def check(self) -> None:
        lines = first_lines(self.path)
        check_encoding(self.path, lines)
        if _is_array(next((line for line in lines if line.strip()), b"")):
            for _ in itertools.islice(self.texts(TextCounts()), _OBJECTS_CHECKED):
                pass
            return
        for number, line in enumerate(lines, 1):
            if line.strip() and len(line) < PROBE_BYTES:
                self._text_of_line(line, number)

    def texts(self, counts: TextCounts) -> Iterator[bytes | None]:
        with open_input(self.path) as file:
            lines = iter(lambda: file.readline(2 * LONGEST_DOCUMENT), b"")
            is_first = True
            for number, line in enumerate(lines, 1):
                line = line.removeprefix(_MARK) if number == 1 else line
                if not line.strip():
                    continue
                if is_first and _is_array(line):
                    parts = iter(lambda: file.read(PROBE_BYTES), b"")
                    yield from self._texts_of_array(itertools.chain([line], parts))
                    return
                is_first = False
                yield self._text_of_line(line, number)

    def _text_of_line(self, line: bytes, number: int) -> bytes | None:
        place = f"--input: {self.path}: line {number}"
        if number == 1:
            line = line.removeprefix(_MARK)
        try:
            row = json.loads(
                line.decode("utf-8", "surrogateescape"), object_pairs_hook=self._object
            )
        except RecursionError:
            raise _too_deep(place) from None
        except _TwiceError as error:
            raise DataError(f"{place} {error}") from None
        except ValueError as error:
            raise DataError(
                f"{place} isn't JSON ({error}); one object a line is expected, shorter than "
                f"{LONGEST_DOCUMENT >> 19} MB"
            ) from None
        return self._text_of(row, place, "one object a line is")

    def _texts_of_array(self, parts: Iterator[bytes]) -> Iterator[bytes | None]:
        """The texts of an array's objects. parts: of the file, of which only as much is held as an object
        needs"""
        decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        decoder = json.JSONDecoder(object_pairs_hook=self._object)
        text = decode(next(parts)).lstrip()
        position = 1
        for number in itertools.count(1):
            place = f"--input: {self.path}: element {number} of the array"
            wanted = 1  # characters; to look at fewer is a waste
            while True:
                position = _BETWEEN.match(text, position).end()  # pyright: ignore[reportOptionalMemberAccess]
                if text.startswith("]", position):
                    rest = itertools.chain([text[position + 1 :]], map(decode, parts))
                    if any(part.strip() for part in rest):
                        raise DataError(
                            f"--input: {self.path}: text follows the end of the array, behind element "
                            f"{number - 1}; put each array into a file of its own"
                        )
                    return
                try:
                    if len(text) - position < wanted:
                        raise ValueError("more is needed")
                    row, position = decoder.raw_decode(text, position)
                    break
                except RecursionError:
                    raise _too_deep(place) from None
                except _TwiceError as error:
                    raise DataError(f"{place} {error}") from None
                except ValueError as error:
                    text, position = text[position:], 0
                    part = next(parts, None)
                    if (part is None and len(text) >= wanted) or len(text) > 2 * LONGEST_DOCUMENT:
                        raise DataError(
                            f"{place} isn't JSON ({error}); objects between commas are expected, each "
                            f"shorter than {LONGEST_DOCUMENT >> 19} MB"
                        ) from None
                    # The last attempt takes what is there.
                    wanted = 0 if part is None else max(wanted, 2 * len(text))
                    text += decode(part or b"", final=part is None)
            yield self._text_of(row, place, "objects are")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object of these pairs. Of two equal keys the last would be kept silently."""
        row = dict(pairs)
        if len(row) < len(pairs):
            keys = [key for key, _ in pairs]
            for key in (self.field, *self.field.split(".")):
                if keys.count(key) > 1:
                    raise _TwiceError(f"gives the key {key!r} {keys.count(key)} times; keep one")
        return row

    def _text_of(self, row: Any, place: str, expected: str) -> bytes | None:
        if not isinstance(row, dict):
            raise DataError(
                f"{place} is a JSON {type(row).__name__}; {expected} expected, with the "
                f"text under {self.field!r}"
            )
        text: Any = row
        keys = [self.field] if self.field in row else self.field.split(".")
        for depth, key in enumerate(keys):
            if text is None:
                return None
            if not isinstance(text, dict) or key not in text:
                within = f" inside of {'.'.join(keys[:depth])!r}" if depth else ""
                there = text if isinstance(text, dict) else ()
                raise DataError(f"{place} has no key {key!r}{within}; {choices(there)}")
            text = text[key]
        if text is not None and not isinstance(text, str):
            raise DataError(f"{place}: {self.field!r} is a {type(text).__name__} instead of text")
        return None if text is None else _as_bytes(text)


def is_json(path: Path) -> bool:
    return unpacked(path).suffix in _SUFFIXES


def choices(names: Any) -> str:
    return f"it has {', '.join(map(str, names)) or 'none'}; choose one by PATH,field=NAME"


def _is_array(first_line: bytes) -> bool:
    return first_line.removeprefix(_MARK).lstrip().startswith(b"[")


def _as_bytes(text: str) -> bytes:
    """The text in UTF-8, but for what wasn't UTF-8, and for halves of surrogate pairs. These are counted
    when it is decoded."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _too_deep(place: str) -> DataError:
    return DataError(
        f"{place} nests lists or objects too deeply to be read (Python's limit is about "
        f"{sys.getrecursionlimit():,} levels); leave out that key, or the line"
    )
