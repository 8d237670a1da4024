"""Memory of `mslt-ds prepare`, by the size of the text and the number of documents.

    python -m benchmarks.prepare_memory --input FILE... [--megabytes 25 50 100] [--documents N]
                                        [--workers N] [--vocab-size N] [--write]

Text: for each size, the command prepares that many megabytes of the input (repeated if it is shorter;
duplicates are kept), once training a vocabulary and once with that vocabulary. The peak resident
memory (VmHWM of the kernel) of the main process and of the largest worker is recorded.
Documents: as many unit files as a corpus of N documents would have, with one token in each document,
are merged. Memory then depends on the number of documents only.

--write writes a dated JSON to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import record
from mslt_ds.data.prepare.documents import Document, TextCounts
from mslt_ds.data.prepare.finish import FIGURES
from mslt_ds.data.prepare.merge import SourceUnits, merge
from mslt_ds.data.prepare.sources import find_inputs, weighted_documents
from mslt_ds.data.prepare.unit import TokenCounts, Unit, write_unit

_SECONDS_BETWEEN_LOOKS = 0.05
_DOCUMENTS_PER_UNIT = 6000


def peaks(command: Sequence[str]) -> dict[str, float]:
    """Run the command; peak resident megabytes of its process and of its largest descendant."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    found: dict[int, float] = {process.pid: 0.0}  # pid -> its latest VmHWM, which exec resets
    is_done = threading.Event()

    def look() -> None:
        main = psutil.Process(process.pid)
        while not is_done.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                running = [process.pid, *(child.pid for child in main.children(recursive=True))]
            except psutil.NoSuchProcess:
                return
            for number in running:
                found[number] = _peak(number) or found.get(number, 0.0)

    watcher = threading.Thread(target=look)
    watcher.start()
    code = process.wait()
    is_done.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    main_process = found.pop(process.pid)
    return {"main process": main_process, "largest worker": max(found.values(), default=0.0)}


def prepare_text(
    documents: Iterator[Document], megabytes: int, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for a preparation that trains a vocabulary, and one for another that's given it."""
    text = folder / "text.txt"
    left = megabytes * 1_000_000
    with text.open("wb") as file:
        for document in documents:
            left -= file.write("\n".join(map(str, document)).encode() + b"\n\n")
            if left <= 0:
                break
    rows = []
    trained, given = folder / "trained", folder / "given"
    for output, vocabulary in (
        (trained, ["--vocab-size", str(options.vocab_size)]),
        (given, ["--tokenizer", str(trained)]),
    ):
        command = [sys.executable, "-m", "mslt_ds.cli", "prepare", "--input", str(text)]
        command += ["--output", str(output), "--keep-duplicates", *vocabulary]
        found = peaks([*command, "--workers", str(options.workers)])
        figures = json.loads((output / FIGURES).read_text())
        rows.append(
            {
                "megabytes": megabytes, "documents": figures["documents"],
                "vocabulary": "trained" if output == trained else "given", **found,
            }
        )  # fmt: skip
    return rows


def merge_documents(count: int, folder: Path) -> dict[str, Any]:
    """Peak resident megabytes of merging `count` documents, in a process of its own."""
    generator = np.random.default_rng(0)
    ones = np.ones(_DOCUMENTS_PER_UNIT, np.uint32)
    for number in range(-(-count // _DOCUMENTS_PER_UNIT)):
        hashes = generator.integers(2**64, size=(_DOCUMENTS_PER_UNIT, 2), dtype=np.uint64)
        unit = Unit(hashes, ones, ones, ones.astype("<u2"), TokenCounts())
        write_unit(folder / f"{number:06d}.unit", unit, "")
    command = [sys.executable, "-m", "benchmarks.prepare_memory", "--merge", str(folder)]
    return {"megabytes": 0, "documents": count, "vocabulary": "merge alone", **peaks(command)}


def _peak(process: int) -> float:
    """VmHWM in megabytes; 0 if the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines.get("VmHWM", "0 kB").split()[0]) * 1024 / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare_memory")
    parser.add_argument("--input", nargs="+", default=[], help="text, as for mslt-ds prepare")
    parser.add_argument("--megabytes", type=int, nargs="*", default=[25, 50, 100])
    parser.add_argument("--documents", type=int, nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--vocab-size", type=int, default=30_000)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--merge", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.merge is not None:
        merge([SourceUnits(sorted(options.merge.glob("*.unit")))], options.merge, vocab_size=2)
        return 0

    rows = []
    for megabytes in options.megabytes:
        endless = chain.from_iterable(
            weighted_documents(inputs, TextCounts())
            for inputs in repeat(find_inputs(options.input))
        )
        with tempfile.TemporaryDirectory() as folder:
            rows += prepare_text(endless, megabytes, Path(folder), options)
        for row in rows[-2:]:
            print(row, flush=True)
    for documents in options.documents:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(merge_documents(documents, Path(folder)))
        print(rows[-1], flush=True)
    if options.write:
        command = ["benchmarks.prepare_memory", *(arguments or sys.argv[1:])]
        figures = {"workers": options.workers, "peaks_in_megabytes": rows}
        record.write("prepare_memory", command, figures, packages=("numpy", "tokenizers"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
