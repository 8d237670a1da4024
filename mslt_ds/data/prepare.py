"""From text files to a token store: `mslt-ds prepare`.

The text is read three times: to check and count it, to train the vocabulary (unless one is given),
and to tokenize it. Memory holds a few units of text, never the whole of it.

Notable: the work is cut into units whose borders depend on the text alone and whose files are
whole or absent. So any number of workers gives the same store, and a preparation that was killed
goes on with the units it lacks when the same command is given again. The manifest comes last:
without it, a folder is no store.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mslt_ds.atomic import replace_text
from mslt_ds.data import corpus, segment, tokenizer
from mslt_ds.data.corpus import Source, TextCounts
from mslt_ds.data.merge import MergeCounts, merge
from mslt_ds.data.store import (
    ARRAYS,
    FORMAT,
    MANIFEST,
    TOKENIZER,
    content_digest,
    file_digest,
    token_dtype,
)
from mslt_ds.data.unit import UNIT_CHARACTERS, Worker, cut_into_units, write_unit
from mslt_ds.errors import DataError

DEFAULT_VOCAB_SIZE = 30_000
FIGURES = "prepare.json"
_WORK = "work"  # unit files, until they're merged
_JOB = "job.json"
_UNITS_AHEAD_PER_WORKER = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"text, one paragraph a line, a blank line between documents; "
        f"{', '.join(corpus.SUFFIXES)}",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the token store to make")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--tokenizer", metavar="DIR", help="use the tokenizer of this folder or token store"
    )
    vocabulary.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"train a WordPiece vocabulary of N tokens (default: {DEFAULT_VOCAB_SIZE})",
    )
    parser.add_argument(
        "--cased", action="store_true", help="keep capitals and accents in a trained vocabulary"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that tokenize (default: one for each core)",
    )


def run(arguments: argparse.Namespace) -> int:
    prepare(
        [Path(path) for path in arguments.input],
        Path(arguments.output),
        tokenizer_folder=Path(arguments.tokenizer) if arguments.tokenizer else None,
        vocab_size=arguments.vocab_size,
        lowercase=not arguments.cased,
        workers=arguments.workers,
    )
    return 0


def prepare(
    inputs: Sequence[Path],
    output: Path,
    *,
    tokenizer_folder: Path | None = None,
    vocab_size: int | None = None,
    lowercase: bool = True,
    workers: int | None = None,
) -> dict[str, Any]:
    """Make the token store `output` from text files; the figures that prepare.json holds."""
    started = time.monotonic()
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    _check_options(vocab_size, workers)
    corpus.check_inputs(inputs)
    if tokenizer_folder is not None:
        tokenizer_folder = tokenizer.check_folder(tokenizer_folder)
        tokenizer.load(tokenizer_folder)
    _check_output(output)

    is_trained = tokenizer_folder is None
    characters = corpus.new_character_counts() if is_trained else None
    text_counts = TextCounts()
    sources = [corpus.scan(path, text_counts, characters) for path in inputs]
    if text_counts.documents < 2:
        raise DataError(
            f"--input: {text_counts.documents} documents with text in {', '.join(map(str, inputs))}"
            "; next-sentence prediction needs at least 2. Separate documents by a blank line"
        )
    _say(f"text: {text_counts.documents:,} documents, {text_counts.num_bytes / 1e6:,.1f} MB")

    options: dict[str, Any] = {"language": segment.LANGUAGE, "unit_characters": UNIT_CHARACTERS}
    if is_trained:
        options |= {"vocab_size": vocab_size or DEFAULT_VOCAB_SIZE, "lowercase": lowercase}
    job = _job(sources, options, tokenizer_folder)
    work = output / _WORK
    if _is_done(output, job):
        _say(f"{output}: is prepared already, from the same text with the same options")
        return json.loads((output / FIGURES).read_text(encoding="utf-8"))
    _begin(output, job)

    with _Timer() as vocabulary_timer:
        if characters is not None and not (work / TOKENIZER / "done").exists():
            _say(f"training a vocabulary of {options['vocab_size']:,} word pieces")
            trained = tokenizer.train(
                _texts(inputs), characters, options["vocab_size"], lowercase=lowercase
            )
            tokenizer.save(trained, work / TOKENIZER, None)
            (work / TOKENIZER / "done").touch()
        elif tokenizer_folder is not None:
            tokenizer.save(tokenizer.load(tokenizer_folder), work / TOKENIZER, tokenizer_folder)
    used = tokenizer.load(work / TOKENIZER)

    with _Timer() as tokenize_timer:
        units = _tokenize(inputs, work, used, workers, text_counts.num_bytes)
    merge_counts = merge(units, output, used.get_vocab_size())
    if merge_counts.documents < 2:
        raise DataError(
            f"--input: only {merge_counts.documents} document with text is left after duplicates "
            "are dropped; next-sentence prediction needs at least 2"
        )
    figures = _figures(text_counts, merge_counts, used.get_vocab_size()) | {
        "seconds": round(time.monotonic() - started, 3),
        "vocabulary_seconds": vocabulary_timer.seconds,
        "tokenize_seconds": tokenize_timer.seconds,
        "workers": workers,
        "megabytes_per_second": round(
            text_counts.num_bytes / 1e6 / max(tokenize_timer.seconds, 1e-3), 3
        ),
    }
    _finish(output, job, used, merge_counts, figures)
    _print_figures(output, figures)
    return figures


class _Timer:
    """Seconds that a block took."""

    seconds = 0.0

    def __enter__(self) -> _Timer:
        self._start = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = round(time.monotonic() - self._start, 3)


def _check_options(vocab_size: int | None, workers: int) -> None:
    if vocab_size is not None and vocab_size < tokenizer.LEAST_VOCAB_SIZE:
        raise DataError(
            f"--vocab-size: {vocab_size} is too small for the special tokens and the letters; "
            f"choose {tokenizer.LEAST_VOCAB_SIZE} or more ({DEFAULT_VOCAB_SIZE} is usual)"
        )
    if workers < 1:
        raise DataError(f"--workers: {workers}; it has to be at least 1")


def _check_output(output: Path) -> None:
    """DataError unless the folder is new, empty or one that this command began."""
    if output.exists() and not output.is_dir():
        raise DataError(f"--output: {output}: a file; name a new folder")
    is_ours = (output / MANIFEST).exists() or (output / _WORK / _JOB).exists()
    if output.exists() and not is_ours and any(output.iterdir()):
        raise DataError(
            f"--output: {output}: not empty, and no token store; name a new or empty folder"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output: {output}: can't be made ({error.strerror})") from error
    if not os.access(output, os.W_OK):
        raise DataError(f"--output: {output}: can't be written")


def _job(
    sources: list[Source], options: dict[str, Any], tokenizer_folder: Path | None
) -> dict[str, Any]:
    """Everything the store's content is a function of."""
    job: dict[str, Any] = {
        "format": FORMAT,
        "sources": [asdict(source) for source in sources],
        "options": options,
        "versions": {name: version(name) for name in ("sentencex", "tokenizers")},
    }
    if tokenizer_folder is not None:
        loaded = tokenizer.load(tokenizer_folder)
        job["tokenizer_sha256"] = hashlib.sha256(loaded.to_str().encode()).hexdigest()
    return job


def _is_done(output: Path, job: dict[str, Any]) -> bool:
    """Whether the store is there; DataError if it's another one."""
    for path in (output / MANIFEST, output / _WORK / _JOB):
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        found = found.get("job", found)
        different = sorted(key for key in job | found if job.get(key) != found.get(key))
        if different:
            raise DataError(
                f"--output: {output}: holds a store of other {', '.join(different)}; name another "
                "folder, or delete this one"
            )
    return (output / MANIFEST).exists()


def _begin(output: Path, job: dict[str, Any]) -> None:
    (output / _WORK).mkdir(exist_ok=True)
    replace_text(output / _WORK / _JOB, json.dumps(job, indent=1) + "\n")


def _texts(inputs: Sequence[Path]) -> Iterator[str]:
    for path in inputs:
        for document in corpus.read_documents(path, TextCounts()):
            yield from document


def _tokenize(
    inputs: Sequence[Path], work: Path, used: Tokenizer, workers: int, num_bytes: int
) -> list[Path]:
    """Make the unit files that are missing; all of them in the order of the text."""
    dtype = token_dtype(used.get_vocab_size())
    counts = TextCounts()
    documents = (document for path in inputs for document in corpus.read_documents(path, counts))
    paths: list[Path] = []

    def missing() -> Iterator[tuple[Path, list[list[str]]]]:
        for number, unit in enumerate(cut_into_units(documents)):
            path = work / f"{number:06d}.unit"
            paths.append(path)
            if not path.exists():
                yield path, unit

    progress = _Progress(num_bytes)
    if workers == 1:
        worker = Worker(work / TOKENIZER, dtype)
        for path, unit in missing():
            write_unit(path, worker.process(unit))
            progress.at(counts.num_bytes)
        return paths

    executor = ProcessPoolExecutor(
        workers,
        # A fork would copy the tokenizer library's threads in an undefined state.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(work / TOKENIZER, dtype.str),
    )
    pending: set[Future[None]] = set()
    try:
        for path, unit in missing():
            pending.add(executor.submit(_work, path, unit))
            if len(pending) >= workers * _UNITS_AHEAD_PER_WORKER:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                progress.at(counts.num_bytes)
        for future in pending:
            future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "--workers: a worker process died, most likely for want of memory; run the same "
            "command again with fewer, it goes on where it stood"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return paths


_worker: Worker | None = None  # of this process, in a pool


def _start_worker(tokenizer_folder: Path, dtype: str) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = Worker(tokenizer_folder, np.dtype(dtype))


def _work(path: Path, documents: list[list[str]]) -> None:
    assert _worker is not None  # the pool's initializer made it
    write_unit(path, _worker.process(documents))


def _figures(text: TextCounts, merged: MergeCounts, vocab_size: int) -> dict[str, Any]:
    return {
        "documents": merged.documents,
        "sentences": merged.sentences,
        "tokens": merged.tokens,
        "vocab_size": vocab_size,
        "text_bytes": text.num_bytes,
        "paragraphs": text.paragraphs,
        "invalid_utf8_paragraphs": text.invalid_utf8_paragraphs,
        "control_characters": text.control_characters,
        "empty_documents": merged.empty_documents,
        "duplicate_documents": merged.duplicate_documents,
    }


def _finish(
    output: Path,
    job: dict[str, Any],
    used: Tokenizer,
    counts: MergeCounts,
    figures: dict[str, Any],
) -> None:
    if (output / TOKENIZER).exists():
        shutil.rmtree(output / TOKENIZER)
    shutil.copytree(output / _WORK / TOKENIZER, output / TOKENIZER)
    (output / TOKENIZER / "done").unlink(missing_ok=True)
    checksums = {name: file_digest(output / name) for name in ARRAYS}
    vocabulary_digest = tokenizer.vocabulary_digest(used)
    manifest = {
        "format": FORMAT,
        "digest": content_digest(vocabulary_digest, checksums),
        "vocabulary_digest": vocabulary_digest,
        "vocab_size": used.get_vocab_size(),
        "special_tokens": asdict(tokenizer.special_tokens(used)),
        "num_documents": counts.documents,
        "num_sentences": counts.sentences,
        "num_tokens": counts.tokens,
        "checksums": checksums,
        "job": job,
    }
    replace_text(output / FIGURES, json.dumps(figures, indent=1) + "\n")
    replace_text(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(output / _WORK)


class _Progress:
    """A line every few seconds."""

    _EVERY_SECONDS = 5.0

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._start = self._last = time.monotonic()

    def at(self, num_bytes: int) -> None:
        now = time.monotonic()
        if now - self._last < self._EVERY_SECONDS:
            return
        self._last = now
        speed = num_bytes / 1e6 / (now - self._start)
        _say(
            f"tokenizing: {num_bytes / 1e6:,.0f} of {self._num_bytes / 1e6:,.0f} MB, "
            f"{speed:.1f} MB/s"
        )


def _print_figures(output: Path, figures: dict[str, Any]) -> None:
    _say(
        f"{output}: {figures['documents']:,} documents, {figures['sentences']:,} sentences, "
        f"{figures['tokens']:,} tokens, vocabulary of {figures['vocab_size']:,}; "
        f"{figures['megabytes_per_second']:.1f} MB/s with {figures['workers']} workers, "
        f"{figures['seconds']:.1f} s in all"
    )
    for name in ("empty_documents", "duplicate_documents", "invalid_utf8_paragraphs"):
        if figures[name]:
            _say(f"  {name.replace('_', ' ')}: {figures[name]:,}")


def _say(line: str) -> None:
    print(line, flush=True, file=sys.stdout)
