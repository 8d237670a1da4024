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
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from mslt_ds import hub, paths
from mslt_ds.data import tokenizer
from mslt_ds.data.prepare import saved_tokenizer, segment, vocabulary
from mslt_ds.data.prepare.documents import TextCounts, count_characters
from mslt_ds.data.prepare.finish import finish, refuse_fewer_than_two
from mslt_ds.data.prepare.folder import DEFAULT_SPLIT
from mslt_ds.data.prepare.json_rows import DEFAULT_FIELD
from mslt_ds.data.prepare.pool import tokenize
from mslt_ds.data.prepare.sources import Input, find_inputs, weighted_documents
from mslt_ds.data.prepare.unit import UNIT_CHARACTERS
from mslt_ds.data.prepare.vocabulary import TrainingOptions
from mslt_ds.data.prepare.wikipedia import WikipediaDump
from mslt_ds.data.prepare.work import WorkFolder
from mslt_ds.data.store import FORMAT, token_dtype
from mslt_ds.errors import DataError
from mslt_ds.shard import Shard

_TRAINED = TrainingOptions()  # unless the user says otherwise
_STRIPPED_MARKS = 0.01  # the share of letters and marks that a text may lose without a warning


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
        f"{DEFAULT_FIELD}; a.b is the key b inside of a), INPUT,ids=NAME a column of token ids, INPUT,split=NAME a data set's split (default: {DEFAULT_SPLIT})",
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
        help="use the tokenizer of this folder or token store, of this model of the hub "
        "(owner/name), or this vocabulary file",
    )
    tokens.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"train a vocabulary of N tokens (default: {_TRAINED.vocab_size})",
    )
    parser.add_argument(
        "--tokenizer-model",
        choices=get_args(vocabulary.Model),
        help="the kind of a trained vocabulary: BERT's, byte-level BPE as RoBERTa's, or SentencePiece's "
        f"as ALBERT's (default: {_TRAINED.model})",
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
        "--keep-accents",
        action="store_true",
        help="keep accents in a trained vocabulary of lower-cased text",
    )
    parser.add_argument(
        "--language",
        default=segment.DEFAULT_LANGUAGE,
        metavar="CODE",
        help="the language by whose rules text is divided into sentences "
        f"(default: {segment.DEFAULT_LANGUAGE})",
    )
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="finish a store even if the tokenizer doesn't know more than 5 %% of a source's tokens",
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
            merge_shards(output, allow_unknown=arguments.allow_unknown)
            return 0
        prepare(
            arguments.input,
            output,
            tokenizer_place=Path(arguments.tokenizer) if arguments.tokenizer else None,
            vocab_size=arguments.vocab_size,
            tokenizer_model=arguments.tokenizer_model,
            alphabet_size=arguments.alphabet,
            lowercase=not arguments.cased,
            keep_accents=arguments.keep_accents,
            language=arguments.language,
            keep_duplicates=arguments.keep_duplicates,
            allow_unknown=arguments.allow_unknown,
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
    tokenizer_model: vocabulary.Model | None = None,
    alphabet_size: int | None = None,
    lowercase: bool = True,
    keep_accents: bool = False,
    language: str = segment.DEFAULT_LANGUAGE,
    keep_duplicates: bool = False,
    allow_unknown: bool = False,
    workers: int | None = None,
    shard: Shard | None = None,
) -> None:
    """Make the token store `output` from the inputs `given`, or only the units of a shard.

    Without `tokenizer_place`, a vocabulary is trained with the options before `language`.
    """
    started = time.monotonic()
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    training = TrainingOptions(
        tokenizer_model or _TRAINED.model,
        vocab_size or _TRAINED.vocab_size,
        lowercase,
        keep_accents,
        alphabet_size,
    )
    if tokenizer_place is None:
        _check_training(training)
    else:
        _refuse_training_options(tokenizer_place, training, tokenizer_model)
    _check_work(workers, shard, tokenizer_place)
    segment.check_language(language)
    inputs = find_inputs(given)
    if tokenizer_place is None and (with_ids := [one for one in inputs if one.holds_ids]):
        raise DataError(
            f"--input: {with_ids[0].source.name}: token ids without --tokenizer; name the tokenizer that "
            "they belong to"
        )
    if tokenizer_place is not None:
        tokenizer_place = tokenizer.find(
            hub.fetch(str(tokenizer_place), "--tokenizer", tokenizer.TOKENIZER_FILES, DataError)
        )
    job = _job(inputs, tokenizer_place or training, language, keep_duplicates)
    work = WorkFolder(output)
    work.check_output()
    work.check_same_job(job)
    if work.is_finished():
        work.remove()
        _say(f"{output}: prepared already, from the same text with the same options")
        return
    work.begin(job)

    _make_tokenizer(inputs, work, tokenizer_place or training)
    used = tokenizer.load(work.tokenizer_folder)
    vocabulary_seconds = time.monotonic() - started
    dtype = token_dtype(used.vocab_size)
    counts = tokenize(inputs, work, dtype, language, workers, shard or Shard(), _say)
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
        allow_unknown=allow_unknown,
    )


def merge_shards(output: Path, *, allow_unknown: bool = False) -> None:
    """Finish the token store `output`, all of whose shards are done."""
    work = WorkFolder(output)
    if work.is_finished():
        work.remove()
        _say(f"{output}: merged already")
        return
    finish(work, {}, _say, allow_unknown=allow_unknown)


def _check_training(options: TrainingOptions) -> None:
    least, most = vocabulary.LEAST_VOCAB_SIZES[options.model], options.vocab_size // 2
    if options.vocab_size < least:
        raise DataError(
            f"--vocab-size: {options.vocab_size} is too small for the special tokens and the letters; "
            f"choose {least} or more ({_TRAINED.vocab_size} is usual)"
        )
    if options.keep_accents and not options.lowercase:
        raise DataError("--keep-accents: with --cased, which keeps them; leave one of them out")
    if options.alphabet is None:
        return
    if options.model == "bpe":
        raise DataError(
            f"--alphabet: {options.alphabet} with --tokenizer-model bpe, which knows every character; "
            "leave --alphabet out"
        )
    if not vocabulary.LEAST_ALPHABET <= options.alphabet <= most:
        raise DataError(
            f"--alphabet: {options.alphabet}; choose {vocabulary.LEAST_ALPHABET} to {most}, half of the "
            "vocabulary, or a larger --vocab-size"
        )


def _refuse_training_options(
    place: Path, options: TrainingOptions, model: vocabulary.Model | None
) -> None:
    """DataError if an option of training is given beside the tokenizer at `place`."""
    for option, is_given in (
        ("--tokenizer-model", model is not None),
        ("--alphabet", options.alphabet is not None),
        ("--cased", not options.lowercase),
        ("--keep-accents", options.keep_accents),
    ):
        if is_given:
            raise DataError(
                f"{option}: with --tokenizer {place}, which decides about this itself; leave {option} "
                "out, or train a vocabulary"
            )


def _check_work(workers: int, shard: Shard | None, tokenizer_place: Path | None) -> None:
    if workers < 1:
        raise DataError(f"--workers: {workers}; it has to be at least 1")
    if shard is not None and tokenizer_place is None:
        raise DataError(
            f"--shard: {shard.number}/{shard.count} without --tokenizer: every task would train "
            "the same vocabulary; prepare a part of the text first and name its store"
        )


def _job(
    inputs: Sequence[Input], place: Path | TrainingOptions, language: str, keep_duplicates: bool
) -> dict[str, Any]:
    """Everything that the content of the store depends on. place: of a tokenizer, or how to train one"""
    if isinstance(place, TrainingOptions):
        made_by = {name: value for name, value in asdict(place).items() if value is not None}
    else:
        tokenizer.TextEncoder(place)  # refuses what can't encode a store's text
        loaded = tokenizer.load(place)
        made_by = {"sha256": hashlib.sha256(loaded.backend.to_str().encode()).hexdigest()}
    versions = ["sentencex", "tokenizers"]
    if any(isinstance(given.source, WikipediaDump) for given in inputs):
        versions.append("mwparserfromhell")
    return {
        "inputs": [given.describe() for given in inputs],
        "tokenizer": made_by,
        "options": {
            "language": language,
            "unit_characters": UNIT_CHARACTERS,
            "keep_duplicates": keep_duplicates,
        },
        "versions": {name: version(name) for name in versions},
        "format": FORMAT,
    }


def _make_tokenizer(
    inputs: Sequence[Input], work: WorkFolder, place: Path | TrainingOptions
) -> None:
    """Write the tokenizer into the work folder, unless an earlier attempt has done so."""
    if work.tokenizer_folder.exists():
        return
    if isinstance(place, Path):
        loaded = tokenizer.load(place)
        if loaded.added:
            _say(
                f"{place}: a language model's tokenizer; {', '.join(loaded.added)} are added to its "
                f"{len(loaded.vocabulary) - len(loaded.added):,} tokens"
            )
        saved_tokenizer.save(loaded, work.tokenizer_folder, place)
        return
    counts = TextCounts()
    characters = count_characters(weighted_documents(inputs, counts))
    refuse_fewer_than_two(counts.documents)
    stride = vocabulary.sampling_stride(counts.text_bytes, place.model)
    _say(
        f"training a vocabulary of {place.vocab_size:,} tokens ({place.model}) on "
        f"{counts.documents:,} documents, {counts.text_bytes / 1e6:,.1f} MB"
        + (f": every {stride}th" if stride > 1 else "")
    )
    texts = (
        paragraph
        for number, document in enumerate(weighted_documents(inputs, TextCounts()))
        if number % stride == 0
        for paragraph in document
        if isinstance(paragraph, str)
    )
    if (share := vocabulary.stripped_marks(characters, place)) > _STRIPPED_MARKS:
        _say(
            f"warning: {share:.0%} of the text's letters and signs are vowel signs or other marks, which are "
            "left out as BERT leaves out accents; --keep-accents keeps them"
        )
    trained = vocabulary.train(texts, characters, place)
    saved_tokenizer.save(trained, work.tokenizer_folder, None)


def _say(line: str) -> None:
    print(line, flush=True)
