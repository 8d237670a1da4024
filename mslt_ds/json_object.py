"""Reads the JSON objects of files that another program, a user or a failing disk may have changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`.

    OSError if it can't be read; ValueError says what it holds instead of an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("more brackets within each other than can be read") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} instead of an object")
    return found
