"""The end of a preparation: the units are merged into a store, and its figures are reported.

`prepare.json` and the manifest account for every document that was read, source by source. A store
whose tokenizer doesn't know the text isn't finished.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mslt_ds.atomic import replace_folder, replace_text
from mslt_ds.data import tokenizer
from mslt_ds.data.prepare.documents import TextCounts
from mslt_ds.data.prepare.merge import Merged, SourceUnits, merge
from mslt_ds.data.prepare.unit import TokenCounts
from mslt_ds.data.prepare.work import SourceRecord, WorkFolder
from mslt_ds.data.store import ARRAYS, FORMAT, MANIFEST, TOKENIZER, content_digest, file_digest
from mslt_ds.errors import DataError

FIGURES = "prepare.json"
_MUCH_UNKNOWN, _TOO_MUCH_UNKNOWN = 0.005, 0.05  # of a source's tokens
_SOURCES_SHOWN, _WORD_SHOWN = 20, 30
_REPORTED = (
    "empty_documents",
    "duplicate_documents",
    "repeated_documents",
    "omitted_documents",
    "skipped_pages",
    "deeply_nested_pages",
    "invalid_utf8_paragraphs",
    "control_characters",
)


def finish(
    work: WorkFolder,
    figures: dict[str, Any],
    say: Callable[[str], None],
    *,
    allow_unknown: bool = False,
) -> None:
    """Merge all units into a store and report its content with `say`.

    figures: of the work so far, for `prepare.json`
    allow_unknown: finish the store whatever the share of unknown tokens is; otherwise DataError
    """
    output = work.output
    job = work.begun_job()
    records = work.sources(len(job["inputs"]))
    refuse_fewer_than_two(sum(record.counts.documents for record in records))
    used = tokenizer.load(work.tokenizer_folder)
    started = time.monotonic()
    parts = zip(work.units(records), records, strict=True)
    merged = merge(
        [SourceUnits(units, record.weight) for units, record in parts],
        output,
        used.vocab_size,
        keep_duplicates=job["options"]["keep_duplicates"],
    )
    if not merged.has_two_texts:
        refuse_fewer_than_two(min(merged.total.documents, 1))
    known = list(zip([record.name for record in records], merged.tokenized, strict=True))
    for line in _tokenized_lines(known):
        say(line)
    _check_unknown(known, say, allow_unknown=allow_unknown)
    sources = _sources(records, merged)
    figures = (
        _totals(records, merged)
        | {"vocab_size": used.vocab_size}
        | figures
        | {"merge_seconds": round(time.monotonic() - started, 3), "sources": sources}
    )
    with replace_folder(output / TOKENIZER) as folder:
        shutil.copytree(work.tokenizer_folder, folder, dirs_exist_ok=True)
    replace_text(output / FIGURES, json.dumps(figures, indent=1) + "\n")
    manifest = _manifest(output, job, sources, merged, used)
    replace_text(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    work.remove()
    _say_figures(output, figures, say)


def refuse_fewer_than_two(documents: int) -> None:
    if documents < 2:
        raise DataError(
            f"--input: different documents with text: {documents}; next-sentence prediction needs "
            "at least 2. Separate documents by a blank line, or give each a row"
        )


def _sources(records: list[SourceRecord], merged: Merged) -> list[dict[str, Any]]:
    return [
        {
            "name": record.name,
            "weight": record.weight,
            "sha256": record.sha256,
            "read": asdict(record.counts),
            "stored": asdict(counts),
            "tokenized": asdict(tokenized),
        }
        for record, counts, tokenized in zip(records, merged.sources, merged.tokenized, strict=True)
    ]


def _totals(records: list[SourceRecord], merged: Merged) -> dict[str, int]:
    """Counts of the store's content, and of what was read; `documents` are those of the store."""
    read = TextCounts()
    for record in records:
        read.add(record.counts)
    totals = asdict(merged.total)
    totals["control_characters"] = sum(one.control_characters for one in merged.tokenized)
    for name, value in asdict(read).items():
        if name != "documents":
            totals[name] = totals.get(name, 0) + value
    return totals


def _manifest(
    output: Path,
    job: dict[str, Any],
    sources: list[dict[str, Any]],
    merged: Merged,
    used: tokenizer.TextTokenizer,
) -> dict[str, Any]:
    checksums = {name: file_digest(output / name) for name in ARRAYS}
    vocabulary_digest = used.digest()
    counts = merged.total
    return {
        "format": FORMAT,
        "digest": content_digest(vocabulary_digest, checksums),
        "vocabulary_digest": vocabulary_digest,
        "vocab_size": used.vocab_size,
        "special_tokens": asdict(used.special_tokens),
        "num_documents": counts.documents,
        "num_sentences": counts.sentences,
        "num_tokens": counts.tokens,
        "checksums": checksums,
        "sources": sources,
        "job": job,
    }


def _say_figures(output: Path, figures: dict[str, Any], say: Callable[[str], None]) -> None:
    line = (
        f"{output}: {figures['documents']:,} documents, {figures['sentences']:,} sentences, "
        f"{figures['tokens']:,} tokens, vocabulary of {figures['vocab_size']:,}"
    )
    if "tokenize_seconds" in figures:
        line += (
            f"; tokenized in {figures['tokenize_seconds']:.1f} s, "
            f"{figures['megabytes_per_second']:.1f} MB/s with {figures['workers']} workers"
        )
    say(line)
    for name in _REPORTED:
        if figures[name]:
            say(f"  {name.replace('_', ' ')}: {figures[name]:,}")


def _tokenized_lines(sources: list[tuple[str, TokenCounts]]) -> list[str]:
    """What the tokenizer makes of each source, those that it knows least first."""
    by_unknown = sorted(sources, key=lambda source: -_unknown_share(source[1]))
    lines = []
    for name, counts in by_unknown[:_SOURCES_SHOWN]:
        per = [
            f"{counts.tokens / of:.3f} tokens per {unit}"
            for of, unit in ((counts.words, "word"), (counts.characters, "character"))
            if of
        ]
        line = f"  {name}: {', '.join([*per, f'{_unknown_share(counts):.3%} unknown'])}"
        if counts.longest_words:
            longest = (f"{_cut(word)} ({len(word)})" for word in counts.longest_words)
            line += f"; longest words: {', '.join(longest)}"
        lines.append(line)
    if (left := len(sources) - _SOURCES_SHOWN) > 0:
        lines.append(f"  … and {left} more sources: see {FIGURES}")
    return lines


def _check_unknown(
    sources: list[tuple[str, TokenCounts]], say: Callable[[str], None], *, allow_unknown: bool
) -> None:
    """DataError if much of a source is unknown to the tokenizer; a warning if it's less, or allowed."""
    for most, is_refused in ((_TOO_MUCH_UNKNOWN, not allow_unknown), (_MUCH_UNKNOWN, False)):
        found = [(name, share) for name, one in sources if (share := _unknown_share(one)) > most]
        if not found:
            continue
        names = ", ".join(f"{share:.1%} of {name}" for name, share in found[:_SOURCES_SHOWN])
        text = f"{names}: tokens that the tokenizer doesn't know"
        remedy = (
            "train a vocabulary on this text (with a larger --vocab-size or --alphabet, or --tokenizer-model "
            "bpe, which knows all), or take another tokenizer"
        )
        if is_refused:
            raise DataError(
                f"--input: {text}, and at most {most:.0%} are allowed; {remedy}, or add --allow-unknown"
            )
        say(f"warning: {text}; {remedy}")
        return


def _cut(word: str) -> str:
    """The word's beginning as it can be printed: control characters would reach the terminal."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in word[:_WORD_SHOWN])
    return shown if len(word) <= _WORD_SHOWN else f"{shown}…"


def _unknown_share(counts: TokenCounts) -> float:
    return counts.unknown_tokens / max(counts.tokens, 1)
