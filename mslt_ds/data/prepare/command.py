"""`mslt-ds prepare`: makes a token store from text.

The work is divided into units whose borders depend on the text alone and whose files are complete or
absent. Any number of workers or shards therefore gives the same store, byte for byte, and after a kill
the same command continues with the missing units. The manifest is written last: a folder without it
isn't a store.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mslt_ds import paths
from mslt_ds.data import tokenizer
from mslt_ds.data.prepare import segment, vocabulary
from mslt_ds.data.prepare.documents import TextCounts, count_characters
from mslt_ds.data.prepare.finish import finish, refuse_fewer_than_two
from mslt_ds.data.prepare.folder import DEFAULT_SPLIT
from mslt_ds.data.prepare.pool import tokenize
from mslt_ds.data.prepare.rows import DEFAULT_FIELD
from mslt_ds.data.prepare.sources import Input, find_inputs, weighted_documents
from mslt_ds.data.prepare.unit import UNIT_CHARACTERS
from mslt_ds.data.prepare.wikipedia import WikipediaDump
from mslt_ds.data.prepare.work import WorkFolder
from mslt_ds.data.store import FORMAT, token_dtype
from mslt_ds.errors import DataError
from mslt_ds.shard import Shard

DEFAULT_VOCAB_SIZE = 30_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        type=paths.path_text,
        nargs="+",
        action="extend",
        default=[],
        metavar="INPUT",
        help="files or globs in quotes (.txt: one paragraph on a line, a blank line between documents; "
        ".jsonl, .xml of Wikipedia; each plain, .gz, .bz2, .xz or .zst; .parquet), folders of data "
        "sets, or data sets of the hub (owner/name:config); INPUT,weight=W lets each document "
        "appear W times, INPUT,field=NAME names the key or column of the text (default: "
        f"{DEFAULT_FIELD}), INPUT,split=NAME a data set's split (default: {DEFAULT_SPLIT})",
    )
    parser.add_argument(
        "--output",
        type=paths.path_text,
        required=True,
        metavar="DIR",
        help="the token store to make",
    )
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument(
        "--tokenizer",
        type=paths.path_text,
        metavar="PLACE",
        help="use the tokenizer of this folder or token store, or this vocabulary file",
    )
    tokens.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"train a WordPiece vocabulary of N tokens (default: {DEFAULT_VOCAB_SIZE})",
    )
    parser.add_argument(
        "--alphabet",
        type=int,
        metavar="N",
        help="let a trained vocabulary know the N most frequent characters (default: about 1,000, and as "
        "many as the text needs where that misses more than 0.01 %% of it)",
    )
    parser.add_argument(
        "--cased", action="store_true", help="keep capitals and accents in a trained vocabulary"
    )
    parser.add_argument(
        "--keep-duplicates",
        action="store_true",
        help="keep documents whose text occurred before",
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
        help="make part I of N only (1 to N, with --tokenizer): for tasks that share the work",
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
            arguments.input,
            output,
            tokenizer_place=Path(arguments.tokenizer) if arguments.tokenizer else None,
            vocab_size=arguments.vocab_size,
            alphabet_size=arguments.alphabet,
            lowercase=not arguments.cased,
            keep_duplicates=arguments.keep_duplicates,
            workers=arguments.workers,
            shard=Shard.parse(arguments.shard) if arguments.shard else None,
        )
    except OSError as error:
        raise DataError(
            f"--output: {output}: {error.filename or 'a file'}: {error.strerror or error}; what "
            "was done stays: run the same command again once this is repaired"
        ) from error
    return 0


def prepare(
    given: Sequence[str | Path],
    output: Path,
    *,
    tokenizer_place: Path | None = None,
    vocab_size: int | None = None,
    alphabet_size: int | None = None,
    lowercase: bool = True,
    keep_duplicates: bool = False,
    workers: int | None = None,
    shard: Shard | None = None,
) -> None:
    """Make the token store `output` from the inputs `given`, or only the units of a shard."""
    started = time.monotonic()
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    _check_options(vocab_size, alphabet_size, lowercase, workers, shard, tokenizer_place)
    inputs = find_inputs(given)
    if tokenizer_place is not None:
        tokenizer_place = tokenizer.find(tokenizer_place)
    job = _job(
        inputs,
        tokenizer_place,
        vocab_size or DEFAULT_VOCAB_SIZE,
        alphabet_size,
        lowercase,
        keep_duplicates,
    )
    work = WorkFolder(output)
    work.check_output()
    work.check_same_job(job)
    if work.is_finished():
        work.remove()
        _say(f"{output}: prepared already, from the same text with the same options")
        return
    work.begin(job)

    _make_tokenizer(inputs, work, job, tokenizer_place)
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
    finish(
        work,
        {
            "workers": workers,
            "vocabulary_seconds": round(vocabulary_seconds, 3),
            "tokenize_seconds": round(tokenize_seconds, 3),
            "megabytes_per_second": round(counts.text_bytes / 1e6 / tokenize_seconds, 3),
        },
        _say,
    )


def merge_shards(output: Path) -> None:
    """Finish the token store `output`, all of whose shards are done."""
    work = WorkFolder(output)
    if work.is_finished():
        work.remove()
        _say(f"{output}: merged already")
        return
    finish(work, {}, _say)


def _check_options(
    vocab_size: int | None,
    alphabet_size: int | None,
    lowercase: bool,
    workers: int,
    shard: Shard | None,
    tokenizer_place: Path | None,
) -> None:
    if vocab_size is not None and vocab_size < vocabulary.LEAST_VOCAB_SIZE:
        raise DataError(
            f"--vocab-size: {vocab_size} is too small for the special tokens and the letters; "
            f"choose {vocabulary.LEAST_VOCAB_SIZE} or more ({DEFAULT_VOCAB_SIZE} is usual)"
        )
    if tokenizer_place is not None and alphabet_size is not None:
        raise DataError(
            f"--alphabet: with --tokenizer {tokenizer_place}, which has an alphabet already; leave one "
            "of them out"
        )
    most = (vocab_size or DEFAULT_VOCAB_SIZE) // 2
    if alphabet_size is not None and not vocabulary.LEAST_ALPHABET <= alphabet_size <= most:
        raise DataError(
            f"--alphabet: {alphabet_size}; choose {vocabulary.LEAST_ALPHABET} to {most}, half of the "
            "vocabulary, or a larger --vocab-size"
        )
    if tokenizer_place is not None and not lowercase:
        raise DataError(
            f"--cased: with --tokenizer {tokenizer_place}, which decides about capitals itself; "
            "leave --cased out, or train a vocabulary"
        )
    if workers < 1:
        raise DataError(f"--workers: {workers}; it has to be at least 1")
    if shard is not None and tokenizer_place is None:
        raise DataError(
            f"--shard: {shard.number}/{shard.count} without --tokenizer: every task would train "
            "the same vocabulary; prepare a part of the text first and name its store"
        )


def _job(
    inputs: Sequence[Input],
    tokenizer_place: Path | None,
    vocab_size: int,
    alphabet_size: int | None,
    lowercase: bool,
    keep_duplicates: bool,
) -> dict[str, Any]:
    """Everything that the content of the store depends on."""
    if tokenizer_place is None:
        made_by: dict[str, Any] = {"vocab_size": vocab_size, "lowercase": lowercase}
        if alphabet_size is not None:
            made_by["alphabet"] = alphabet_size
    else:
        loaded = tokenizer.load_for_text(tokenizer_place)
        made_by = {"sha256": hashlib.sha256(loaded.to_str().encode()).hexdigest()}
    versions = ["sentencex", "tokenizers"]
    if any(isinstance(given.source, WikipediaDump) for given in inputs):
        versions.append("mwparserfromhell")
    return {
        "inputs": [given.describe() for given in inputs],
        "tokenizer": made_by,
        "options": {
            "language": segment.LANGUAGE,
            "unit_characters": UNIT_CHARACTERS,
            "keep_duplicates": keep_duplicates,
        },
        "versions": {name: version(name) for name in versions},
        "format": FORMAT,
    }


def _make_tokenizer(
    inputs: Sequence[Input], work: WorkFolder, job: dict[str, Any], tokenizer_place: Path | None
) -> None:
    """Write the tokenizer into the work folder, unless an earlier attempt has done so."""
    if work.tokenizer_folder.exists():
        return
    if tokenizer_place is not None:
        vocabulary.save(tokenizer.load(tokenizer_place), work.tokenizer_folder, tokenizer_place)
        return
    counts = TextCounts()
    characters = count_characters(weighted_documents(inputs, counts))
    refuse_fewer_than_two(counts.documents)
    vocab_size, lowercase = job["tokenizer"]["vocab_size"], job["tokenizer"]["lowercase"]
    stride = vocabulary.sampling_stride(counts.text_bytes)
    _say(
        f"training a vocabulary of {vocab_size:,} word pieces on {counts.documents:,} documents, "
        f"{counts.text_bytes / 1e6:,.1f} MB" + (f": every {stride}th" if stride > 1 else "")
    )
    texts = (
        paragraph
        for number, document in enumerate(weighted_documents(inputs, TextCounts()))
        if number % stride == 0
        for paragraph in document
    )
    trained = vocabulary.train(
        texts,
        characters,
        vocab_size,
        lowercase=lowercase,
        alphabet_size=job["tokenizer"].get("alphabet"),
    )
    vocabulary.save(trained, work.tokenizer_folder, None)


def _say(line: str) -> None:
    print(line, flush=True)
