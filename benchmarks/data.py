"""Speed of turning text into tokens, and tokens into training instances.

    python -m benchmarks.data --input FILE [--vocab-size N] [--workers N] [--repeats N] [--write]
    python -m benchmarks.data --input FILE --store STORE [--repeats N] [--write]

Tokens: megabytes of text per second by `mslt-ds prepare` (reading, sentences, WordPiece, writing),
compared with the tokenizer library's batch call on all cores.
Instances and loader: see instances.py. With --store, a store of that text, only these are measured.

The figures are medians over several turns. Work on one core is measured in processor time of its
thread, which other programs on the machine don't affect. --write writes a dated JSON to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks import instances, record
from benchmarks.turns import Measurement, medians
from mslt_ds.data import tokenizer
from mslt_ds.data.prepare.command import prepare
from mslt_ds.data.prepare.documents import TextCounts, TextFile
from mslt_ds.data.prepare.finish import FIGURES
from mslt_ds.data.store import TokenStore

LIBRARY_BATCH = 4096  # paragraphs


def tokens_by_the_library(paragraphs: list[str], used: Any) -> Measurement:
    """MB/s of the tokenizer library's batch call, on all cores."""
    size = sum(len(paragraph.encode()) for paragraph in paragraphs) / 1e6

    def measure() -> float:
        start = time.perf_counter()
        for first in range(0, len(paragraphs), LIBRARY_BATCH):
            used.encode_batch_fast(
                paragraphs[first : first + LIBRARY_BATCH], add_special_tokens=False
            )
        return size / (time.perf_counter() - start)

    return measure


def tokens_by_prepare(text: Path, store: TokenStore, workers: int) -> Measurement:
    """MB/s of `mslt-ds prepare`, from the figures that it writes."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "store"
            command = [sys.executable, "-m", "mslt_ds.cli", "prepare", "--input", str(text)]
            command += ["--output", str(output), "--tokenizer", str(store.path)]
            command += ["--workers", str(workers)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return json.loads((output / FIGURES).read_text())["megabytes_per_second"]

    return measure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description="Time the data.")
    parser.add_argument("--input", type=Path, required=True, help="English text, 20 MB or more")
    parser.add_argument(
        "--store", type=Path, help="a store of that text; measures instances and loader only"
    )
    parser.add_argument("--vocab-size", type=int, default=30_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    with tempfile.TemporaryDirectory() as folder:
        path = options.store or Path(folder) / "store"
        if options.store is None:
            with redirect_stdout(sys.stderr):
                prepare(
                    [options.input], path, vocab_size=options.vocab_size, workers=options.workers
                )
        store = TokenStore.open(path)
        paragraphs = [
            paragraph
            for document in TextFile(options.input).documents(TextCounts())
            for paragraph in document
        ]
        library, command = "tokens, library, MB/s", "tokens, prepare, MB/s"
        speeds: dict[str, float] = {}
        ratios: dict[str, float] = {}
        if options.store is None:
            used = tokenizer.load(store.tokenizer_dir).backend
            speeds |= medians(
                {
                    library: tokens_by_the_library(paragraphs, used),
                    command: tokens_by_prepare(options.input, store, options.workers),
                },
                options.repeats,
            )
            ratios["prepare / library"] = speeds[command] / speeds[library]
        measurements, divisions = instances.measurements(store, paragraphs)
        speeds |= medians(measurements, options.repeats)
        ratios |= {
            f"{above} / {below}": speeds[above] / speeds[below] for above, below in divisions
        }
        for name, value in (speeds | ratios).items():
            print(f"{name:70} {value:14,.2f}")
        if options.write:
            _write(options, store, speeds, ratios)
    return 0


def _write(
    options: argparse.Namespace,
    store: TokenStore,
    speeds: dict[str, float],
    ratios: dict[str, float],
) -> None:
    command = [
        "benchmarks.data", "--input", options.input.name, "--vocab-size", str(options.vocab_size),
        "--workers", str(options.workers), "--write",
        *(["--store", options.store.name] if options.store else []),
    ]  # fmt: skip
    figures = {"tokens": store.num_tokens, "speeds": speeds, "ratios": ratios}
    packages = ("numba", "tokenizers", "sentencex", "transformers")
    record.write("data", command, figures, packages=packages)


if __name__ == "__main__":
    raise SystemExit(main())
