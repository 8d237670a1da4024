"""Speed of making training instances from tokens: a part of `python -m benchmarks.data`.

Instances: sequences per second on one core, for every format and masking, by the loader, by the same
rules in plain Python, and by Hugging Face's collator, which only masks sequences that were cut and
paired before (single tokens or whole words).
Loader: sequences per second by number of workers; the share of its time that a training as fast as
several GPUs waits for them; and the seconds that a new process takes to open store and index, with
10^9 instances, and to make the first batch of a late step.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.turns import Measurement
from mslt_ds.data import tokenizer
from mslt_ds.data.epoch_index import file_name
from mslt_ds.data.instances import InstanceOptions, epoch_key
from mslt_ds.data.loader import InstanceSequence, global_batches
from mslt_ds.data.masking import Masking
from mslt_ds.data.store import TokenStore
from mslt_ds.hugging_face import LOAD
from mslt_ds.model.objective import OBJECTIVES
from tests.unit.data.comparison import documents_of
from tests.unit.data.reference import (
    Frame,
    PythonDraws,
    instances_of_document,
    packed_instances,
)

SEED, SEQ_LENGTH, MAX_PREDICTIONS = 1, 128, 20
GLOBAL_BATCH, MICRO_BATCH = 1024, 32
COMPILED_BATCHES, COLLATED_INSTANCES, PLAIN_DOCUMENTS = 20, 2_000, 100
FAR_INSTANCES = 10**9
# Sequences per second. A Hopper GPU trains the whole of BERT-Base at 4,000 to 5,000 and a quarter of its
# layers at four times as many.
HUNGRY = 20_000
VARIANTS: tuple[tuple[str, Masking], ...] = (
    *(("nsp", masking) for masking in get_args(Masking)),
    *((input_format, "token") for input_format in ("sop", "full_sentences", "doc_sentences")),
    ("full_sentences", "span"),
)


def options_of(input_format: str, masking: Masking) -> InstanceOptions:
    return InstanceOptions(SEQ_LENGTH, MAX_PREDICTIONS, input_format=input_format, masking=masking)


def measurements(
    store: TokenStore, paragraphs: list[str]
) -> tuple[dict[str, Measurement], list[tuple[str, str]]]:
    """(measurements by name, pairs of names whose figures are divided)."""
    found: dict[str, Measurement] = {}
    divisions = []
    documents = documents_of(store.corpus)[: 20 * PLAIN_DOCUMENTS]
    for whole_word in (False, True):
        name = f"collator{', whole words' if whole_word else ''}, 1/s"
        found[name] = masking_by_the_collator(store, paragraphs, whole_word=whole_word)
    for input_format, masking in VARIANTS:
        options = options_of(input_format, masking)
        name = f"{input_format} {masking}"
        found[f"{name}, 1/s"] = instances_compiled(store, options)
        found[f"{name}, plain Python, 1/s"] = instances_in_plain_python(store, options, documents)
        found[f"{name}, index, 1/s"] = index_entries(store, options)
        divisions.append((f"{name}, 1/s", f"{name}, plain Python, 1/s"))
        collator = "collator, 1/s" if masking == "token" else "collator, whole words, 1/s"
        divisions.append((f"{name}, 1/s", collator))
    for workers in (0, 1, 2):
        found[f"loader, {workers} workers, 1/s"] = loaded(store, workers)
    for workers in (0, 1, 2):
        found[f"share of time waited at {HUNGRY:,}/s, {workers} workers"] = waited(store, workers)
    divisions.append(("loader, 2 workers, 1/s", "loader, 1 workers, 1/s"))
    found["first batch of a far step, seconds"] = seconds_to_a_far_step(store, loaded=True)
    found["first batch of a far step and loading compiled code, seconds"] = seconds_to_a_far_step(
        store, loaded=False
    )
    return found, divisions


def instances_compiled(store: TokenStore, options: InstanceOptions) -> Measurement:
    """Sequences per second of thread time: looked up in the order of training, and built."""
    sequence = InstanceSequence(store, options, SEED)
    starts = random.Random(0)

    def measure() -> float:
        start = time.thread_time()
        for _ in range(COMPILED_BATCHES):
            first = starts.randrange(sequence.length - GLOBAL_BATCH)
            sequence.build(*sequence.entries(first, GLOBAL_BATCH))
        return COMPILED_BATCHES * GLOBAL_BATCH / (time.thread_time() - start)

    return measure


def index_entries(store: TokenStore, options: InstanceOptions) -> Measurement:
    """Index entries per second of thread time."""
    key = epoch_key(store.digest, SEED, 0)
    continues = tokenizer.load(store.tokenizer_dir).continuing_tokens()

    def measure() -> float:
        start = time.thread_time()
        last = store.num_documents
        entries, _ = options.index_documents(store.corpus, continues, key, 0, last)
        return len(entries) / (time.thread_time() - start)

    return measure


def instances_in_plain_python(
    store: TokenStore, options: InstanceOptions, documents: list[list[list[int]]]
) -> Measurement:
    continuing = tokenizer.load(store.tokenizer_dir).continuing_tokens()
    continues = frozenset(np.flatnonzero(continuing).tolist())
    frame = Frame(options, store.corpus.special, store.vocab_size, continues)
    draws = PythonDraws(0)

    def measure() -> float:
        chosen = random.sample(range(len(documents)), PLAIN_DOCUMENTS)
        start = time.thread_time()
        if options.is_paired:
            count = sum(
                len(instances_of_document(documents, number, frame, draws, lambda _: draws))
                for number in chosen
            )
        else:
            count = len(packed_instances([documents[i] for i in chosen], frame, lambda *_: draws))
        return count / (time.thread_time() - start)

    return measure


def masking_by_the_collator(
    store: TokenStore, paragraphs: list[str], *, whole_word: bool
) -> Measurement:
    """Hugging Face's masking of sequences that were tokenized and cut to length before."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    used = AutoTokenizer.from_pretrained(store.tokenizer_dir, **LOAD)
    collator = DataCollatorForLanguageModeling(used, whole_word_mask=whole_word)
    long = [paragraph for paragraph in paragraphs if len(paragraph) > 8 * SEQ_LENGTH]
    encoded = used(
        long[:MICRO_BATCH],
        truncation=True,
        max_length=SEQ_LENGTH,
        return_offsets_mapping=whole_word,
    )
    examples = [{name: encoded[name][i] for name in encoded} for i in range(MICRO_BATCH)]

    def measure() -> float:
        start = time.thread_time()
        for _ in range(COLLATED_INSTANCES // MICRO_BATCH):
            collator([dict(example) for example in examples])
        return COLLATED_INSTANCES / (time.thread_time() - start)

    return measure


def loaded(store: TokenStore, num_workers: int, num_steps: int = 200) -> Measurement:
    """Sequences per second of wall-clock time from the loader, for one rank."""

    def measure() -> float:
        iterator = batches(store, num_workers=num_workers, num_steps=num_steps)
        next(iterator)
        start = time.perf_counter()
        for _ in iterator:
            pass
        return (num_steps - 1) * GLOBAL_BATCH / (time.perf_counter() - start)

    return measure


def waited(store: TokenStore, num_workers: int, num_steps: int = 40) -> Measurement:
    """Share of its time that a training at HUNGRY sequences per second waits for the loader.

    A batch is freed before the next one is requested, so that the time to free it isn't counted.
    """
    step_seconds = GLOBAL_BATCH / HUNGRY

    def measure() -> float:
        iterator = batches(store, num_workers=num_workers, num_steps=num_steps)
        held = [next(iterator)]
        seconds = 0.0
        for _ in range(num_steps - 1):
            time.sleep(step_seconds)
            held.clear()
            start = time.perf_counter()
            held.append(next(iterator))
            seconds += time.perf_counter() - start
        return seconds / (seconds + (num_steps - 1) * step_seconds)

    return measure


def seconds_to_a_far_step(store: TokenStore, *, loaded: bool) -> Measurement:
    """A new process opens store and index and makes the batch of a step in epoch 3.

    The index files exist, have 10^9 entries each and are sparse; none of their pages is in memory.

    loaded: whether the compiled code was used before, at another place of the index
    """

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            path.mkdir()
            for file in store.path.iterdir():
                if file.name != "index":
                    (path / file.name).symlink_to(file.resolve())
            (path / "index").mkdir()
            for epoch in (0, 3):
                index = path / "index" / file_name(store, options_of("nsp", "token"), SEED, epoch)
                index.touch()
                os.truncate(index, 8 * FAR_INSTANCES)
            command = [sys.executable, "-m", "benchmarks.instances", str(path)]
            finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return float(finished.stdout.split()[loaded])

    return measure


def seconds_to_step(path: str, step: int) -> float:
    """From opening the store at `path` to the batch of `step`."""
    start = time.perf_counter()
    next(batches(TokenStore.open(path), num_workers=0, num_steps=1, start_step=step))
    return time.perf_counter() - start


def batches(store: TokenStore, *, num_workers: int, num_steps: int, start_step: int = 0) -> Any:
    return islice(
        global_batches(
            store,
            options_of("nsp", "token"),
            OBJECTIVES["nsp"],
            seed=SEED,
            global_batch_size=GLOBAL_BATCH,
            micro_batch_size=MICRO_BATCH,
            rank=0,
            world_size=1,
            first_instance=start_step * GLOBAL_BATCH,
            num_steps=num_steps,
            num_workers=num_workers,
        ),
        num_steps,
    )


if __name__ == "__main__":
    far = 3 * FAR_INSTANCES // GLOBAL_BATCH
    print(seconds_to_step(sys.argv[1], far + 10), seconds_to_step(sys.argv[1], far + 500_000))
