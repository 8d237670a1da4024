"""Cells on disk: each finished cell is a file, and the process that works on a cell holds its lock.

The lock is the kernel's (`flock`), which releases it when the process ends in any way. Several
processes on one machine can therefore walk the same list of cells and take those that are free; a
cell that a killed process left unfinished is free again.

The scores of a cell depend on its fingerprint (model, recipe, data), on the cell itself, and on
rounding. A file with another fingerprint is an error. The device and the number of threads affect
only rounding and, on a GPU, which random numbers a seed gives, so they are recorded in each cell and
aren't part of the fingerprint.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mslt_ds.atomic import replace_text
from mslt_ds.errors import CheckpointError
from mslt_ds.evaluation.grid import Cell
from mslt_ds.json_object import read_object

FOLDER = "cells"


class CellFolder:
    """The cells of one output folder.

    fingerprints: for each task, a digest of what its scores depend on besides the cell
    """

    def __init__(self, output: Path, fingerprints: dict[str, str]) -> None:
        self._folder = output / FOLDER
        self._fingerprints = fingerprints

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """The content of a finished cell; None if it isn't finished.

        CheckpointError if the file belongs to another model, recipe or data set.
        """
        path = self._path(cell)
        if not path.is_file():
            return None
        try:
            found = read_object(path)
            fingerprint = found["fingerprint"]
        except (OSError, ValueError, KeyError) as error:
            raise damaged(path, error) from error
        if fingerprint != self._fingerprints[cell.task]:
            raise CheckpointError(
                f"{path}: made with another model, recipe or data than now; choose another "
                "--output, or remove the folder"
            )
        return found

    def write(self, cell: Cell, content: dict[str, Any]) -> None:
        """Write the file of a finished cell."""
        head = {
            "task": cell.task,
            "learning_rate": cell.learning_rate,
            "seed": cell.seed,
            "fingerprint": self._fingerprints[cell.task],
        }
        replace_text(self._path(cell), json.dumps(head | content, indent=1) + "\n")

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Yields whether this process may work on the cell: False while another process does."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f".{cell.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.name}.json"


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file of results that can't be read."""
    return CheckpointError(
        f"{path}: damaged ({type(error).__name__}: {error}); remove this file, and it's made again"
    )


def fingerprint(*parts: Any) -> str:
    """A digest of values that JSON can hold, in hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
