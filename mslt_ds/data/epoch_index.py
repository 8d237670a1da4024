"""The index of an epoch: one word for each instance, memory-mapped.

The file ends with a seal: a digest of what the index was made from, and one of the entries. It is compared
when the file is opened, and a file that is damaged, or another one of its name, is made anew.

The index is made by replaying the documents in compiled code, block by block, so that memory doesn't
grow with the corpus. It is kept beside the store, or in the user's cache folder if the store can't be
written (`MSLT_CACHE_DIR`, else `XDG_CACHE_HOME`, else ~/.cache). Of the processes that need the same index
in the same folder one makes it: it holds a lock on the unfinished file, and the others wait. The kernel
(on NFS: the server) releases the lock of a process that was killed; the next one goes on in its file.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from mslt_ds.data.instances import InstanceMaker, epoch_key
from mslt_ds.data.store import DOCUMENTS, GROUPS, SENTENCES, TOKENS, TokenStore
from mslt_ds.errors import DataError

_FORMAT = 3
_SEAL_BYTES = 64
_FOLDER = "index"
_DOCUMENTS_PER_BLOCK = 1 << 16
_EPOCHS_KEPT = 2
_LONG_SECONDS = 5.0
_LOOK_SECONDS = 0.2  # for an index that another process makes
Say = Callable[[str], None]
logger = logging.getLogger(__name__)


def epoch_index(
    store: TokenStore,
    continues: np.ndarray,
    options: InstanceMaker,
    seed: int,
    epoch: int,
    say: Say | None = None,
) -> np.ndarray:
    """Index entries of all instances of `epoch`, (instances,) uint64, in document order.

    continues: (vocab_size,) bool, see word_starts.py
    say: called once with a message if making the index takes long
    """
    name = file_name(store, options, seed, epoch)
    folders = _folders(store)
    for folder in folders:
        try:
            return _map(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except _DamagedIndexError:
            logger.warning("%s: damaged; this index is made anew", folder / name)
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
    if problem := options.problem(store):
        raise DataError(f"{store.path}: {problem}")
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


class _DamagedIndexError(OSError):
    """An index isn't what was written, and its folder is of no use where it can't be removed."""


def file_name(store: TokenStore, options: InstanceMaker, seed: int, epoch: int) -> str:
    """The name of an index file: a digest of all that the index depends on, and the epoch."""
    made_of = repr((_FORMAT, store.digest, options, seed))
    return f"{hashlib.sha256(made_of.encode()).hexdigest()[:24]}-{epoch}.bin"


def _make(
    path: Path,
    store: TokenStore,
    continues: np.ndarray,
    options: InstanceMaker,
    seed: int,
    epoch: int,
    say: Say | None,
) -> np.ndarray:
    started = time.monotonic()
    digest = hashlib.sha256()
    key = epoch_key(store.digest, seed, epoch)
    start, count = 0, 0
    with _one_maker(path) as file:
        if file is None:
            return _map(path)
        try:
            # What is made of damaged files would outlast them.
            store.verify((SENTENCES, DOCUMENTS, GROUPS, *([TOKENS] if len(continues) else [])))
            for first in range(0, store.num_documents, _DOCUMENTS_PER_BLOCK):
                last = min(first + _DOCUMENTS_PER_BLOCK, store.num_documents)
                entries, start = options.index_documents(
                    store.corpus, continues, key, first, last, start
                )
                file.write(entries.data)
                digest.update(entries.data)
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
            file.write(_made_of(path) + digest.digest())
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    _remove_old(path, epoch)
    return _map(path)


@contextmanager
def _one_maker(path: Path) -> Iterator[BinaryIO | None]:
    """The empty file to rename to `path`, for the one process that makes it; None for the others, once it's
    made."""
    partial = path.with_name(f".{path.name}.partial")
    while not path.exists():
        with partial.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOOK_SECONDS)
                continue
            except (
                OSError
            ):  # a file system without locks: each process makes it, and the last one stays
                with tempfile.NamedTemporaryFile(
                    prefix=partial.name, dir=path.parent, delete=False
                ) as own:
                    yield cast(BinaryIO, own)
                partial.unlink(missing_ok=True)
                return
            # Another process may have renamed or removed the file between the opening and the lock.
            if partial.exists() and os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                if path.exists():
                    partial.unlink()
                    break
                file.truncate(0)
                yield file
                return
    yield None


def _remove_old(path: Path, epoch: int) -> None:
    """Delete the indices of epochs well before `epoch`. That of epoch 0 is kept, since it determines
    the length of all epochs. A deleted index is made again if needed; mapped ones stay usable."""
    prefix = path.name.rpartition("-")[0]
    for other in path.parent.glob(f"{prefix}-*.bin"):
        number = other.stem.rpartition("-")[2]
        if number.isdecimal() and 0 < int(number) < epoch - _EPOCHS_KEPT:
            other.unlink(missing_ok=True)


def _made_of(path: Path) -> bytes:
    """A digest of 32 bytes of what an index is made from, as its name has it (`file_name`)."""
    return hashlib.sha256(path.name.encode()).digest()


def _map(path: Path) -> np.ndarray:
    """The entries, (instances,) uint64. _DamagedIndexError unless they are what was written."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - _SEAL_BYTES
        if size <= 0 or size % 8:
            raise _DamagedIndexError(f"{path}: damaged")
        mapped = np.memmap(file, dtype="<u8", mode="r", shape=(size // 8,))
        file.seek(size)
        seal = file.read()
    if seal != _made_of(path) + hashlib.sha256(mapped.data).digest():
        raise _DamagedIndexError(f"{path}: damaged")
    mapping: Any = mapped.base
    # Training reads it in random order: read-ahead would load 32 pages for each entry.
    if isinstance(mapping, mmap.mmap):
        mapping.madvise(mmap.MADV_RANDOM)
    return np.asarray(mapped)
