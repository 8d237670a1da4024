"""Writes files and folders atomically: after a kill at any time, each is complete or absent.

Content is written next to its final path under a hidden name, flushed to the disk and then renamed.
A rename within a file system is atomic (POSIX `rename`), and durable once the parent folder is
flushed too. The hidden name is fixed, so the next process removes the leftovers of a killed one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Call fsync on a file, or on a folder, whose entries are then durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`. Readers see the old content or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    flush_to_disk(partial)
    partial.replace(path)
    flush_to_disk(path.parent)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it is renamed to `path` if the block ends without an exception.

    The folder above isn't made: where it is gone, the disk may be, and another one be in its place.

    After a kill at any time, `path` is a complete folder or absent. An existing folder can be absent
    only between two renames: POSIX has no rename onto a folder that holds files.
    """
    partial = path.with_name(f".{path.name}.partial")
    old = path.with_name(f".{path.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
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
