"""From text files to a token store: `mslt-ds prepare`.

Notable: the work is cut into units whose borders depend on the text alone and whose files are
whole or absent. So any number of workers, or of tasks with a shard each, gives the same store byte
for byte, and a preparation that was killed goes on with what it lacks when the same command is
given again. The manifest comes last: without it, a folder is no store.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mslt_ds.atomic import replace_folder, replace_text
from mslt_ds.data import corpus, segment, tokenizer
from mslt_ds.data.merge import MergeCounts, SourceUnits, merge
from mslt_ds.data.pool import Shard, tokenize
from mslt_ds.data.store import (
    ARRAYS,
    FORMAT,
    MANIFEST,
    TOKENIZER,
    content_digest,
    file_digest,
    token_dtype,
)
from mslt_ds.data.unit import UNIT_CHARACTERS
from mslt_ds.data.work import SourceRecord, WorkFolder
from mslt_ds.errors import DataError

DEFAULT_VOCAB_SIZE = 30_000
FIGURES = "prepare.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="FILE",
        help="text, one paragraph a line, a blank line between documents; "
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
    share = parser.add_mutually_exclusive_group()
    share.add_argument(
        "--shard",
        metavar="I/N",
        help="do part I of N only (1 to N, with --tokenizer): for tasks that share the work",
    )
    share.add_argument(
        "--merge", action="store_true", help="finish a store whose shards are all done"
    )


def run(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output)
    try:
        if arguments.merge:
            merge_shards(output)
            return 0
        prepare(
            [Path(path) for path in arguments.input],
            output,
            tokenizer_folder=Path(arguments.tokenizer) if arguments.tokenizer else None,
            vocab_size=arguments.vocab_size,
            lowercase=not arguments.cased,
            workers=arguments.workers,
            shard=Shard.parse(arguments.shard) if arguments.shard else None,
        )
    except OSError as error:
        raise DataError(
            f"--output: {output}: {error.filename or 'a file'}: {error.strerror or error}; what "
            "was done stays: give the same command again when that is mended"
        ) from error
    return 0


def prepare(
    inputs: Sequence[Path],
    output: Path,
    *,
    tokenizer_folder: Path | None = None,
    vocab_size: int | None = None,
    lowercase: bool = True,
    workers: int | None = None,
    shard: Shard | None = None,
) -> None:
    """Make the token store `output` from text files, or a shard's part of it."""
    started = time.monotonic()
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    _check_options(vocab_size, workers, shard, tokenizer_folder)
    corpus.check_inputs(inputs)
    if tokenizer_folder is not None:
        tokenizer_folder = tokenizer.check_folder(tokenizer_folder)
    work = WorkFolder(output)
    work.check_output()
    job = _job(inputs, tokenizer_folder, vocab_size or DEFAULT_VOCAB_SIZE, lowercase)
    work.check_same_job(job)
    if work.is_finished():
        work.remove()
        _say(f"{output}: prepared already, from the same text with the same options")
        return
    work.begin(job)

    _make_tokenizer(inputs, work, job, tokenizer_folder)
    used = tokenizer.load(work.tokenizer_folder)
    vocabulary_seconds = time.monotonic() - started
    dtype = token_dtype(tokenizer.vocab_size(used))
    counts = tokenize(inputs, work, dtype, workers, shard or Shard(), _say)
    tokenize_seconds = time.monotonic() - started - vocabulary_seconds
    if shard is not None:
        _say(
            f"shard {shard.number}/{shard.count} is done; when all are: "
            f"mslt-ds prepare --merge --output {output}"
        )
        return
    _finish(
        work,
        {
            "workers": workers,
            "vocabulary_seconds": round(vocabulary_seconds, 3),
            "tokenize_seconds": round(tokenize_seconds, 3),
            "megabytes_per_second": round(counts.text_bytes / 1e6 / tokenize_seconds, 3),
        },
    )


def merge_shards(output: Path) -> None:
    """Finish the token store `output`, all of whose shards are done."""
    work = WorkFolder(output)
    if work.is_finished():
        work.remove()
        _say(f"{output}: merged already")
        return
    if work.find_job() is None:
        raise DataError(f"--output: {output}: no shard was begun here; run them with --shard first")
    _finish(work, {})


def _check_options(
    vocab_size: int | None, workers: int, shard: Shard | None, tokenizer_folder: Path | None
) -> None:
    if vocab_size is not None and vocab_size < tokenizer.LEAST_VOCAB_SIZE:
        raise DataError(
            f"--vocab-size: {vocab_size} is too small for the special tokens and the letters; "
            f"choose {tokenizer.LEAST_VOCAB_SIZE} or more ({DEFAULT_VOCAB_SIZE} is usual)"
        )
    if workers < 1:
        raise DataError(f"--workers: {workers}; it has to be at least 1")
    if shard is not None and tokenizer_folder is None:
        raise DataError(
            f"--shard: {shard.number}/{shard.count} without --tokenizer: every task would train "
            "the same vocabulary; prepare a part of the text first and name its store"
        )


def _job(
    inputs: Sequence[Path], tokenizer_folder: Path | None, vocab_size: int, lowercase: bool
) -> dict[str, Any]:
    """Everything the store's content is a function of."""
    if tokenizer_folder is None:
        vocabulary: dict[str, Any] = {"vocab_size": vocab_size, "lowercase": lowercase}
    else:
        loaded = tokenizer.load(tokenizer_folder)
        vocabulary = {"sha256": hashlib.sha256(loaded.to_str().encode()).hexdigest()}
    return {
        "inputs": [{"name": path.name, "fingerprint": corpus.fingerprint(path)} for path in inputs],
        "tokenizer": vocabulary,
        "options": {"language": segment.LANGUAGE, "unit_characters": UNIT_CHARACTERS},
        "versions": {name: version(name) for name in ("sentencex", "tokenizers")},
        "format": FORMAT,
    }


def _make_tokenizer(
    inputs: Sequence[Path], work: WorkFolder, job: dict[str, Any], tokenizer_folder: Path | None
) -> None:
    """Put the tokenizer into the work folder, unless an earlier attempt did."""
    if work.tokenizer_folder.exists():
        return
    if tokenizer_folder is not None:
        tokenizer.save(tokenizer.load(tokenizer_folder), work.tokenizer_folder, tokenizer_folder)
        return
    counts = corpus.TextCounts()
    characters = corpus.count_characters(_documents(inputs, counts))
    _refuse_small(counts.documents)
    vocab_size, lowercase = job["tokenizer"]["vocab_size"], job["tokenizer"]["lowercase"]
    stride = tokenizer.sampling_stride(counts.text_bytes)
    _say(
        f"training a vocabulary of {vocab_size:,} word pieces on {counts.documents:,} documents, "
        f"{counts.text_bytes / 1e6:,.1f} MB" + (f": every {stride}th" if stride > 1 else "")
    )
    texts = (
        paragraph
        for number, document in enumerate(_documents(inputs, corpus.TextCounts()))
        if number % stride == 0
        for paragraph in document
    )
    trained = tokenizer.train(texts, characters, vocab_size, lowercase=lowercase)
    tokenizer.save(trained, work.tokenizer_folder, None)


def _documents(inputs: Sequence[Path], counts: corpus.TextCounts) -> Iterator[list[str]]:
    for path in inputs:
        yield from corpus.read_documents(path, counts)


def _refuse_small(documents: int) -> None:
    if documents < 2:
        raise DataError(
            f"--input: {documents} documents with text, all different; next-sentence prediction "
            "needs at least 2. Separate documents by a blank line"
        )


def _finish(work: WorkFolder, figures: dict[str, Any]) -> None:
    """Merge all units into a store and say what it holds."""
    output = work.output
    job = work.find_job()
    assert job is not None  # the caller began it or found it
    sources = work.sources(len(job["inputs"]))
    _refuse_small(sum(source.documents for source in sources))
    used = tokenizer.load(work.tokenizer_folder)
    started = time.monotonic()
    units = [SourceUnits(paths) for paths in work.units(sources)]
    merged = merge(units, output, tokenizer.vocab_size(used))
    counts = merged.total
    if not merged.has_two_texts:
        _refuse_small(min(counts.documents, 1))
    figures = _content_figures(sources, counts, used) | figures
    figures["merge_seconds"] = round(time.monotonic() - started, 3)
    with replace_folder(output / TOKENIZER) as folder:
        shutil.copytree(work.tokenizer_folder, folder, dirs_exist_ok=True)
    replace_text(output / FIGURES, json.dumps(figures, indent=1) + "\n")
    manifest = _manifest(output, job, sources, counts, used)
    replace_text(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    work.remove()
    _print_figures(output, figures)


def _content_figures(
    sources: list[SourceRecord], counts: MergeCounts, used: Tokenizer
) -> dict[str, Any]:
    names = ("text_bytes", "paragraphs", "invalid_utf8_paragraphs")
    return (
        asdict(counts)
        | {name: sum(getattr(source, name) for source in sources) for name in names}
        | {"vocab_size": tokenizer.vocab_size(used)}
    )


def _manifest(
    output: Path,
    job: dict[str, Any],
    sources: list[SourceRecord],
    counts: MergeCounts,
    used: Tokenizer,
) -> dict[str, Any]:
    checksums = {name: file_digest(output / name) for name in ARRAYS}
    vocabulary_digest = tokenizer.vocabulary_digest(used)
    return {
        "format": FORMAT,
        "digest": content_digest(vocabulary_digest, checksums),
        "vocabulary_digest": vocabulary_digest,
        "vocab_size": tokenizer.vocab_size(used),
        "special_tokens": asdict(tokenizer.special_tokens(used)),
        "num_documents": counts.documents,
        "num_sentences": counts.sentences,
        "num_tokens": counts.tokens,
        "checksums": checksums,
        "sources": [asdict(source) for source in sources],
        "job": job,
    }


def _print_figures(output: Path, figures: dict[str, Any]) -> None:
    line = (
        f"{output}: {figures['documents']:,} documents, {figures['sentences']:,} sentences, "
        f"{figures['tokens']:,} tokens, vocabulary of {figures['vocab_size']:,}"
    )
    if "tokenize_seconds" in figures:
        line += (
            f"; tokenized in {figures['tokenize_seconds']:.1f} s, "
            f"{figures['megabytes_per_second']:.1f} MB/s with {figures['workers']} workers"
        )
    _say(line)
    for name in (
        "empty_documents",
        "duplicate_documents",
        "invalid_utf8_paragraphs",
        "control_characters",
    ):
        if figures[name]:
            _say(f"  {name.replace('_', ' ')}: {figures[name]:,}")


def _say(line: str) -> None:
    print(line, flush=True)
