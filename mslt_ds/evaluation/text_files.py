"""Reads text and JSON files, plain or compressed with xz. Errors name the file."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from mslt_ds.errors import DataError

PACKED = ".xz"


def find(path: Path) -> Path | None:
    """`path`, or the same name with `.xz`; None if neither exists."""
    for candidate in (path, path.with_name(path.name + PACKED)):
        if candidate.is_file():
            return candidate
    return None


def read_text(path: Path, remedy: str = "check the path") -> str:
    """The text of `path` or `path.xz` in UTF-8; DataError if it can't be read.

    remedy: what the message suggests if the file is missing
    """
    found = find(path)
    if found is None:
        raise DataError(f"{path}: no such file, nor one with {PACKED}; {remedy}")
    try:
        content = found.read_bytes()
    except OSError as error:
        raise DataError(f"{found}: {error.strerror or error}") from error
    if found.suffix == PACKED:
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise DataError(f"{found}: damaged ({error}); fetch it again") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{found}:{line}: not UTF-8 ({error.reason}); convert the file") from error


def read_json(path: Path) -> Any:
    """The JSON value in `path` or `path.xz`; DataError if it can't be read."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: no JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, too many brackets
        raise DataError(f"{path}: JSON that can't be read ({error})") from error
