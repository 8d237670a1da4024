"""Paths that a user writes, in a recipe or on a command line: `~` is expanded, impossible ones refused.

A shell expands `~` only at the beginning of a word, so not in `--output=~/runs` or
`--set output_dir=~/runs`, and YAML doesn't know it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of every file system in use and of Linux


def expand(text: str) -> str:
    """`text` with a leading `~` or `~user` expanded; ValueError if no file can have this path."""
    if "\0" in text:
        raise ValueError("no path can hold a NUL character; leave it out")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(f"no such user; write ./{path} for a file or folder of this name")
    if (length := len(os.fsencode(path))) > _LONGEST_PATH:
        raise ValueError(
            f"a path of {length} bytes; {_LONGEST_PATH} are allowed, choose a shorter one"
        )
    for name in path.split("/"):
        length = len(os.fsencode(name))
        if length > _LONGEST_NAME:
            raise ValueError(
                f"a name of {length} bytes; file systems allow {_LONGEST_NAME}, choose a shorter one"
            )
    return path


def path_text(text: str) -> str:
    """`expand` as an argument's `type`, for what need not be a path, such as a name of the hub."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: {error}") from None


def path(text: str) -> Path:
    """A path as an argument's `type`."""
    return Path(path_text(text))
