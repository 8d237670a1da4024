"""The end of a preparation: the units are merged into a store, and its figures are reported.

`prepare.json` and the manifest account for every document that was read, source by source.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mslt_ds.atomic import replace_folder, replace_text
from mslt_ds.data import tokenizer
from mslt_ds.data.prepare.documents import TextCounts
from mslt_ds.data.prepare.merge import Merged, SourceUnits, merge
from mslt_ds.data.prepare.work import SourceRecord, WorkFolder
from mslt_ds.data.store import ARRAYS, FORMAT, MANIFEST, TOKENIZER, content_digest, file_digest
from mslt_ds.errors import DataError

FIGURES = "prepare.json"
_REPORTED = (
    "empty_documents",
    "duplicate_documents",
    "repeated_documents",
    "omitted_documents",
    "skipped_pages",
    "invalid_utf8_paragraphs",
    "control_characters",
)


def finish(work: WorkFolder, figures: dict[str, Any], say: Callable[[str], None]) -> None:
    """Merge all units into a store and report its content with `say`.

    figures: of the work so far, for `prepare.json`
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
        tokenizer.vocab_size(used),
        keep_duplicates=job["options"]["keep_duplicates"],
    )
    if not merged.has_two_texts:
        refuse_fewer_than_two(min(merged.total.documents, 1))
    sources = _sources(records, merged)
    figures = (
        _totals(records, merged)
        | {"vocab_size": tokenizer.vocab_size(used)}
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
        }
        for record, counts in zip(records, merged.sources, strict=True)
    ]


def _totals(records: list[SourceRecord], merged: Merged) -> dict[str, int]:
    """Counts of the store's content, and of what was read; `documents` are those of the store."""
    read = TextCounts()
    for record in records:
        read.add(record.counts)
    totals = asdict(merged.total)
    for name, value in asdict(read).items():
        if name != "documents":
            totals[name] = totals.get(name, 0) + value
    return totals


def _manifest(
    output: Path,
    job: dict[str, Any],
    sources: list[dict[str, Any]],
    merged: Merged,
    used: Tokenizer,
) -> dict[str, Any]:
    checksums = {name: file_digest(output / name) for name in ARRAYS}
    vocabulary_digest = tokenizer.vocabulary_digest(used)
    counts = merged.total
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
