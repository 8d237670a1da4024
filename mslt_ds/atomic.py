"""Files and folders that are either whole or not there, whenever the process is killed.

Everything is written beside its place, under a hidden name, flushed to the disk and then renamed.
A rename within a file system is atomic (POSIX `rename`), and it's durable once the parent folder
is flushed too. The hidden name is fixed, so what a killed process left is cleared by the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """fsync of a file, or of a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Give `path` the content `text`: a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    flush_to_disk(partial)
    partial.replace(path)
    flush_to_disk(path.parent)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `path` when the block ends without an exception.

    A kill at any point leaves under `path` a whole folder or none. "None" is possible only while
    an existing folder is being replaced, between two renames: POSIX has no rename onto a folder
    that holds files.
    """
    partial = path.with_name(f".{path.name}.partial")
    old = path.with_name(f".{path.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for entry in sorted(partial.rglob("*")):
        flush_to_disk(entry)
    flush_to_disk(partial)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    flush_to_disk(path.parent)
    shutil.rmtree(old, ignore_errors=True)
