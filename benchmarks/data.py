"""How fast text becomes tokens, and tokens become training instances.

    python -m benchmarks.data --input FILE [--vocab-size N] [--workers N] [--repeats N] [--write]

Tokens: megabytes of text a second by `mslt-ds prepare` (reading, sentences, WordPiece, writing)
against the tokenizer library's own batch call on all cores.
Instances: sequences a second on one core, by the compiled code, by the same rules in plain Python,
and by Hugging Face's collator, which only masks what was cut and paired before (whole words too).
Loader: global batches a second with workers, and seconds until the first batch of a far step.

Everything is measured in turns and the median taken. What runs on one core is timed by that
thread's own processor time, so that a machine shared with others doesn't count. --write leaves a
dated JSON in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS, device_name
from mslt_ds.data import tokenizer
from mslt_ds.data.corpus import TextCounts, TextFile
from mslt_ds.data.finish import FIGURES
from mslt_ds.data.instances import InstanceOptions, build, epoch_key, index_documents
from mslt_ds.data.loader import InstanceSequence, global_batches
from mslt_ds.data.prepare import prepare
from mslt_ds.data.store import TokenStore
from tests.unit.data.reference import PythonDraws, instances_of_document

OPTIONS = InstanceOptions(seq_length=128, max_predictions=20)
GLOBAL_BATCH, MICRO_BATCH = 1024, 32
LIBRARY_BATCH = 4096  # paragraphs
COMPILED_INSTANCES, COLLATED_INSTANCES, PLAIN_DOCUMENTS = 20_000, 2_000, 100
FAR_STEP = 10**9
Measurement = Callable[[], float]


def tokens_by_the_library(paragraphs: list[str], used: Any) -> Measurement:
    """MB/s of the tokenizer's own batch call, on all cores."""
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
    """MB/s of text to tokens by the command, from the figures it leaves."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "store"
            command = [sys.executable, "-m", "mslt_ds.cli", "prepare", "--input", str(text)]
            command += ["--output", str(output), "--tokenizer", str(store.path)]
            command += ["--workers", str(workers)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return json.loads((output / FIGURES).read_text())["megabytes_per_second"]

    return measure


def instances_compiled(store: TokenStore) -> Measurement:
    """Sequences a second of thread time."""
    entries = InstanceSequence(store, OPTIONS, 1).index(0)
    key = epoch_key(store.digest, 1, 0)
    starts = random.Random(0)

    def measure() -> float:
        start = time.thread_time()
        for _ in range(COMPILED_INSTANCES // MICRO_BATCH):
            first = starts.randrange(len(entries) - MICRO_BATCH)
            build(store.corpus, OPTIONS, key, entries[first : first + MICRO_BATCH])
        return COMPILED_INSTANCES / (time.thread_time() - start)

    return measure


def index_entries(store: TokenStore) -> Measurement:
    """Index entries a second of thread time."""
    key = epoch_key(store.digest, 1, 0)

    def measure() -> float:
        start = time.thread_time()
        entries = index_documents(store.corpus, OPTIONS, key, 0, store.num_documents)
        return len(entries) / (time.thread_time() - start)

    return measure


def instances_in_plain_python(store: TokenStore) -> Measurement:
    arrays = store.corpus
    documents = [
        [
            arrays.tokens[arrays.sentences[s] : arrays.sentences[s + 1]].tolist()
            for s in range(arrays.documents[d], arrays.documents[d + 1])
        ]
        for d in range(min(store.num_documents, 20 * PLAIN_DOCUMENTS))
    ]
    draws = PythonDraws(0)

    def measure() -> float:
        start = time.thread_time()
        count = sum(
            len(
                instances_of_document(
                    documents, document, OPTIONS, arrays.special, arrays.vocab_size,
                    draws, lambda _: draws,
                )
            )
            for document in random.sample(range(len(documents)), PLAIN_DOCUMENTS)
        )  # fmt: skip
        return count / (time.thread_time() - start)

    return measure


def masking_by_the_collator(
    store: TokenStore, paragraphs: list[str], *, whole_word: bool
) -> Measurement:
    """Hugging Face's masking of sequences that are tokenized and cut to length already."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    used = AutoTokenizer.from_pretrained(store.tokenizer_dir)
    collator = DataCollatorForLanguageModeling(used, whole_word_mask=whole_word)
    long = [paragraph for paragraph in paragraphs if len(paragraph) > 8 * OPTIONS.seq_length]
    encoded = used(
        long[:MICRO_BATCH],
        truncation=True,
        max_length=OPTIONS.seq_length,
        return_offsets_mapping=whole_word,
    )
    examples = [{name: encoded[name][i] for name in encoded} for i in range(MICRO_BATCH)]

    def measure() -> float:
        start = time.thread_time()
        for _ in range(COLLATED_INSTANCES // MICRO_BATCH):
            collator([dict(example) for example in examples])
        return COLLATED_INSTANCES / (time.thread_time() - start)

    return measure


def loaded(store: TokenStore, num_workers: int, num_steps: int = 40) -> Measurement:
    """Sequences a second of wall time from the loader, to one rank."""

    def measure() -> float:
        iterator = _batches(store, num_workers=num_workers, start_step=0, num_steps=num_steps)
        start = time.perf_counter()
        for _ in iterator:
            pass
        return num_steps * GLOBAL_BATCH / (time.perf_counter() - start)

    return measure


def seconds_to_a_far_step(store: TokenStore) -> Measurement:
    """From the call to the first batch, where the index of its epoch is there already."""

    def measure() -> float:
        start = time.perf_counter()
        next(_batches(store, num_workers=0, start_step=FAR_STEP, num_steps=1))
        return time.perf_counter() - start

    return measure


def _batches(store: TokenStore, *, num_workers: int, start_step: int, num_steps: int) -> Any:
    return iter(
        global_batches(
            store,
            seed=1,
            seq_length=OPTIONS.seq_length,
            max_predictions=OPTIONS.max_predictions,
            global_batch_size=GLOBAL_BATCH,
            micro_batch_size=MICRO_BATCH,
            rank=0,
            world_size=1,
            start_step=start_step,
            num_steps=num_steps,
            num_workers=num_workers,
        )
    )


def medians(measurements: dict[str, Measurement], repeats: int) -> dict[str, float]:
    """Of `repeats` turns, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in measurements}
    for turn in range(repeats + 1):
        for name, measure in measurements.items():
            value = measure()
            if turn:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description="Time the data.")
    parser.add_argument("--input", type=Path, required=True, help="English text, 20 MB or more")
    parser.add_argument("--vocab-size", type=int, default=30_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(sys.stderr):
            prepare(
                [options.input], Path(folder) / "store",
                vocab_size=options.vocab_size, workers=options.workers,
            )  # fmt: skip
        store = TokenStore.open(Path(folder) / "store")
        paragraphs = [
            paragraph
            for document in TextFile(options.input).documents(TextCounts())
            for paragraph in document
        ]
        used = tokenizer.load(store.tokenizer_dir)
        speeds = medians(
            {
                "tokens, library, MB/s": tokens_by_the_library(paragraphs, used),
                "tokens, prepare, MB/s": tokens_by_prepare(options.input, store, options.workers),
            },
            options.repeats,
        ) | medians(
            {
                "instances, compiled, 1/s": instances_compiled(store),
                "instances, plain Python, 1/s": instances_in_plain_python(store),
                "masking, collator, 1/s": masking_by_the_collator(
                    store, paragraphs, whole_word=False
                ),
                "masking, collator, whole words, 1/s": masking_by_the_collator(
                    store, paragraphs, whole_word=True
                ),
                "index, 1/s": index_entries(store),
                "loader, in process, 1/s": loaded(store, 0),
                "loader, 1 worker, 1/s": loaded(store, 1),
                "loader, 2 workers, 1/s": loaded(store, 2),
                f"step {FAR_STEP:,}, seconds": seconds_to_a_far_step(store),
            },
            options.repeats,
        )
        compiled = speeds["instances, compiled, 1/s"]
        ratios = {
            "prepare / library": speeds["tokens, prepare, MB/s"] / speeds["tokens, library, MB/s"],
            "compiled / plain Python": compiled / speeds["instances, plain Python, 1/s"],
            "compiled / collator": compiled / speeds["masking, collator, 1/s"],
            "compiled / collator, whole words": compiled
            / speeds["masking, collator, whole words, 1/s"],
        }
        for name, value in (speeds | ratios).items():
            print(f"{name:36} {value:14,.2f}")
        if options.write:
            _write(options, arguments, store, speeds, ratios)
    return 0


def _write(
    options: argparse.Namespace,
    arguments: Sequence[str] | None,
    store: TokenStore,
    speeds: dict[str, float],
    ratios: dict[str, float],
) -> None:
    import torch

    now = datetime.now(UTC)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "command": [
            "python", "-m", "benchmarks.data", "--input", options.input.name, "--vocab-size",
            str(options.vocab_size), "--workers", str(options.workers), "--write",
        ],
        "device": device_name(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "versions": {
            name: version(name) for name in ("numba", "tokenizers", "sentencex", "transformers")
        },
        "tokens": store.num_tokens,
        "speeds": speeds,
        "ratios": ratios,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"data_{now:%Y%m%d_%H%M%S}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    raise SystemExit(main())
