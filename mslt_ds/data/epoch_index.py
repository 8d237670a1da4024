"""The index of an epoch: one word for each instance, memory-mapped.

The index is made by replaying the documents in compiled code, block by block, so that memory doesn't
grow with the corpus. It is kept beside the store, or in the user's cache folder if the store can't be
written (`MSLT_CACHE_DIR`, else `XDG_CACHE_HOME`, else ~/.cache). Processes that make the same index at
the same time write the same bytes under names of their own and rename them to the same path, in any
order.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mslt_ds.data.instances import InstanceOptions, epoch_key, index_documents
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import DataError

_FORMAT = 2
_FOLDER = "index"
_DOCUMENTS_PER_BLOCK = 1 << 16
_EPOCHS_KEPT = 2
_LONG_SECONDS = 5.0
Say = Callable[[str], None]


def epoch_index(
    store: TokenStore,
    continues: np.ndarray,
    options: InstanceOptions,
    seed: int,
    epoch: int,
    say: Say | None = None,
) -> np.ndarray:
    """Index entries of all instances of `epoch`, (instances,) uint64, in document order.

    continues: (vocab_size,) bool, see words.py
    say: called once with a message if making the index takes long
    """
    name = file_name(store, options, seed, epoch)
    folders = _folders(store)
    for folder in folders:
        try:
            return _map(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            continue
    groups = store.corpus.groups
    if options.input_format == "nsp" and not (groups != groups[0]).any():
        raise DataError(
            f"{store.path}: {store.num_documents} documents, all the same; next-sentence prediction "
            "draws its random sentences from another document, so at least 2 that differ are "
            "needed. Separate documents by an empty line and prepare the store again, or choose "
            "another data.input_format"
        )
    problems = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _make(folder / name, store, continues, options, seed, epoch, say)
        except OSError as error:
            problems.append(f"{folder} ({error.strerror or error})")
    raise DataError(
        f"{store.path}: no folder for the index of an epoch could be written: "
        f"{', '.join(problems)}; set MSLT_CACHE_DIR to a folder with room"
    )


def _folders(store: TokenStore) -> list[Path]:
    """The folders that may hold an index, in order of preference."""
    cache = os.environ.get("MSLT_CACHE_DIR")
    if not cache:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        cache = os.path.join(base, "mslt-ds")
    return [store.path / _FOLDER, Path(cache) / _FOLDER]


def file_name(store: TokenStore, options: InstanceOptions, seed: int, epoch: int) -> str:
    """The name of an index file: a digest of all that the index depends on, and the epoch."""
    made_of = repr((_FORMAT, store.digest, options, seed))
    return f"{hashlib.sha256(made_of.encode()).hexdigest()[:24]}-{epoch}.bin"


def _make(
    path: Path,
    store: TokenStore,
    continues: np.ndarray,
    options: InstanceOptions,
    seed: int,
    epoch: int,
    say: Say | None,
) -> np.ndarray:
    started = time.monotonic()
    key = epoch_key(store.digest, seed, epoch)
    start, count = 0, 0
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for first in range(0, store.num_documents, _DOCUMENTS_PER_BLOCK):
                last = min(first + _DOCUMENTS_PER_BLOCK, store.num_documents)
                entries, start = index_documents(
                    store.corpus, continues, options, key, first, last, start
                )
                entries.tofile(file)
                count += len(entries)
                seconds = time.monotonic() - started
                if say is not None and seconds > _LONG_SECONDS and last < store.num_documents:
                    say(
                        f"{store.path}: making the index of epoch {epoch} from "
                        f"{store.num_documents:,} documents, about "
                        f"{seconds * (store.num_documents / last - 1):,.0f} s more; it's kept in "
                        f"{path.parent}"
                    )
                    say = None
            if not count:
                raise DataError(
                    f"{store.path}: no instance at data.input_format {options.input_format}: every "
                    "document is a single token; choose another format or another text"
                )
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    _remove_old(path, epoch)
    return _map(path)


def _remove_old(path: Path, epoch: int) -> None:
    """Delete the indices of epochs well before `epoch`. That of epoch 0 is kept, since it determines
    the length of all epochs. A deleted index is made again if needed; mapped ones stay usable."""
    prefix = path.name.rpartition("-")[0]
    for other in path.parent.glob(f"{prefix}-*.bin"):
        number = other.stem.rpartition("-")[2]
        if number.isdecimal() and 0 < int(number) < epoch - _EPOCHS_KEPT:
            other.unlink(missing_ok=True)


def _map(path: Path) -> np.ndarray:
    mapped = np.memmap(path, dtype="<u8", mode="r")
    file: Any = mapped.base
    # Training reads it in random order: read-ahead would load 32 pages for each entry.
    if isinstance(file, mmap.mmap):
        file.madvise(mmap.MADV_RANDOM)
    return np.asarray(mapped)
