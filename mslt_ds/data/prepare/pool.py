"""Makes the missing units of all inputs with several processes.

One process reads the text and divides it into units, the others segment and tokenize them. If a worker
dies, the preparation ends with an error, and finished units are kept.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mslt_ds.data.prepare.documents import TextCounts
from mslt_ds.data.prepare.sources import Input
from mslt_ds.data.prepare.unit import (
    Documents,
    Worker,
    cut_into_units,
    is_unit_of,
    text_digest,
    write_unit,
)
from mslt_ds.data.prepare.work import SourceRecord, WorkFolder
from mslt_ds.errors import DataError
from mslt_ds.shard import Shard

_UNITS_AHEAD_PER_WORKER = 2
_PROGRESS_SECONDS = 5.0
Submit = Callable[[Path, Documents, str], None]


def reads(shard: Shard, file: int, num_files: int) -> bool:
    """Whether the shard reads input `file`. Whole inputs are dealt out if there are at least as many
    as shards; otherwise every shard reads all of them."""
    return num_files < shard.count or shard.takes(file)


def makes(shard: Shard, unit: int, num_files: int) -> bool:
    """Whether the shard makes unit `unit` of an input that it reads."""
    return num_files >= shard.count or shard.takes(unit)


def tokenize(
    inputs: Sequence[Input],
    work: WorkFolder,
    dtype: np.dtype,
    language: str,
    workers: int,
    shard: Shard,
    say: Callable[[str], None],
) -> TextCounts:
    """Make the shard's missing units. Returns counts of what was read."""
    total = TextCounts()
    start = last = time.monotonic()
    with _workers(workers, work.tokenizer_folder, dtype, language) as submit:
        for file, given in enumerate(inputs):
            if not reads(shard, file, len(inputs)):
                continue
            counts = TextCounts()
            sha256 = hashlib.sha256()
            units = 0
            for documents in cut_into_units(given.source.documents(counts, sha256)):
                unit = work.unit(file, units)
                text = text_digest(documents)
                if makes(shard, units, len(inputs)) and not is_unit_of(unit, text):
                    submit(unit, documents, text)
                units += 1
                now = time.monotonic()
                if now - last > _PROGRESS_SECONDS:
                    last = now
                    megabytes = (total.text_bytes + counts.text_bytes) / 1e6
                    say(
                        f"tokenizing input {file + 1} of {len(inputs)}: {megabytes:,.0f} MB, "
                        f"{megabytes / (now - start):.1f} MB/s"
                    )
            record = SourceRecord(
                given.source.name, given.weight, sha256.hexdigest(), units, counts
            )
            work.write_source(file, record)
            total.add(counts)
    return total


@contextmanager
def _workers(
    count: int, tokenizer_folder: Path, dtype: np.dtype, language: str
) -> Iterator[Submit]:
    """Yields a function that submits a unit. All submitted units are finished when the block ends."""
    if count == 1:
        worker = Worker(tokenizer_folder, dtype, language)
        yield lambda path, documents, text: write_unit(path, worker.process(documents), text)
        return

    executor = ProcessPoolExecutor(
        count,
        # A fork would copy the tokenizer library's threads in an undefined state.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer_folder, dtype.str, language),
    )
    pending: set[Future[None]] = set()

    def submit(path: Path, documents: Documents, text: str) -> None:
        nonlocal pending
        pending.add(executor.submit(_work, path, documents, text))
        if len(pending) >= count * _UNITS_AHEAD_PER_WORKER:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()

    try:
        yield submit
        for future in pending:
            future.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"--workers: {count}: one of the processes died, most likely for lack of memory; run "
            "the same command again with fewer, and it continues with the missing units"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_worker: Worker  # of a process in a pool, made by its initializer


def _start_worker(tokenizer_folder: Path, dtype: str, language: str) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each process
    _worker = Worker(tokenizer_folder, np.dtype(dtype), language)


def _work(path: Path, documents: Documents, text: str) -> None:
    write_unit(path, _worker.process(documents), text)
