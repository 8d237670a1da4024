"""Fine-tuning with buckets of like length against padding all to 128 tokens, in turns.

    python -m benchmarks.evaluation --model DIR --data DIR --task MRPC [--steps N] [--repeats N] [--write]

Both ways take the same examples, batch size, model and arithmetic; the other way is what `run_glue.py`
does by default (`--pad_to_max_length`, `--max_seq_length 128`): batches in random order, every one
padded to 128. Steps are spread over all lengths; seconds a step are compared. `--scores` fine-tunes both
ways to the end by several seeds, which shows whether results are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mslt_ds.distributed import World, device_name
from mslt_ds.evaluation.batches import training_batches
from mslt_ds.evaluation.encode import Encoded
from mslt_ds.evaluation.encoder import Encoder
from mslt_ds.evaluation.finetune import Batch, Settings, fine_tune
from mslt_ds.evaluation.glue import GlueRunner, Source, loss_for
from mslt_ds.evaluation.metrics import scores
from mslt_ds.evaluation.recipe import GlueRecipe
from mslt_ds.evaluation.runner import device_for
from mslt_ds.evaluation.tasks import TASKS

RESULTS = Path(__file__).parent / "results"
PADDED = 128
WAYS = ("buckets", "padded to 128")


def batches(
    encoded: Encoded, recipe: GlueRecipe, way: str, seed: int, epoch: int
) -> list[list[int]]:
    """An epoch's rows, by either way."""
    if way == "buckets":
        return training_batches(encoded.lengths, recipe.batch_size, seed, epoch)
    order = np.random.default_rng((seed, epoch)).permutation(len(encoded))
    return [
        order[start : start + recipe.batch_size].tolist()
        for start in range(0, len(order), recipe.batch_size)
    ]


def tensors(encoded: Encoded, rows: Sequence[int], way: str) -> Batch:
    return encoded.batch(rows, None if way == "buckets" else PADDED)


def step_seconds(runner: GlueRunner, task: str, way: str, steps: int) -> float:
    """The mean of `steps` steps over all lengths, after one to warm up."""
    _, train, _ = runner.encoded(task)
    rows = batches(train, runner.recipe, way, 1, 0)
    rows.sort(key=lambda batch: max(train.lengths[row] for row in batch))
    middles = [(2 * index + 1) * len(rows) // (2 * steps) for index in range(steps)]
    marks: list[float] = []

    def timed() -> Iterator[Batch]:
        for middle in [middles[-1], *middles]:
            marks.append(time.perf_counter())
            yield tensors(train, rows[middle], way)
        marks.append(time.perf_counter())

    model = runner.build(TASKS[task], 1)
    settings = Settings.of(runner.recipe, 0.0, 1, steps + 1)
    fine_tune(model, timed(), loss_for(TASKS[task]), settings)
    return (marks[-1] - marks[1]) / steps


def final_scores(
    runner: GlueRunner, task: str, way: str, rate: float, seed: int
) -> dict[str, float]:
    """Dev scores after a whole fine-tuning."""
    _, train, dev = runner.encoded(task)
    model = runner.build(TASKS[task], seed)
    epochs = runner.recipe.epochs_for(task)

    def stream() -> Iterator[Batch]:
        for epoch in range(epochs):
            for rows in batches(train, runner.recipe, way, seed, epoch):
                yield tensors(train, rows, way)

    settings = Settings.of(runner.recipe, rate, seed, runner.steps(task))
    fine_tune(model, stream(), loss_for(TASKS[task]), settings)
    split = dev[next(iter(dev))]
    return scores(TASKS[task], runner.outputs(model, split), split.labels)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation")
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--data", required=True, help="GLUE's files")
    parser.add_argument("--task", default="MRPC", choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=6, help="steps of a measurement")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way")
    parser.add_argument(
        "--scores", type=int, default=0, metavar="SEEDS", help="train both ways too"
    )
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--train-examples", type=int)
    parser.add_argument("--write", action="store_true", help="a dated JSON in benchmarks/results")
    options = parser.parse_args(arguments)

    recipe = GlueRecipe(train_examples=options.train_examples)
    device = device_for("auto", World(0, 1, 0), recipe.precision)
    task = TASKS[options.task]
    data = {task.name: Source(options.data).read(task, recipe)}
    runner = GlueRunner(Encoder.open(options.model), recipe, device, data)
    measured: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(options.repeats):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            measured[way].append(step_seconds(runner, task.name, way, options.steps))
    seconds = {way: statistics.median(values) for way, values in measured.items()}
    ratio = seconds["padded to 128"] / seconds["buckets"]
    for way in WAYS:
        print(f"{way:16} {seconds[way]:.4f} s a step")
    print(f"buckets are {ratio:.2f} times as fast")
    found = {
        way: [
            final_scores(runner, task.name, way, options.learning_rate, seed)
            for seed in range(1, options.scores + 1)
        ]
        for way in WAYS
    }
    for way, values in found.items():
        for value in values:
            print(f"{way:16} {value}")
    if options.write:
        _write(options, device, seconds, measured, ratio, found)
    return 0


def _write(
    options: argparse.Namespace,
    device: torch.device,
    seconds: dict[str, float],
    measured: dict[str, list[float]],
    ratio: float,
    found: dict[str, Any],
) -> None:
    now = datetime.now(UTC)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks.evaluation", *sys.argv[1:]],
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "task": options.task,
        "seconds_a_step": seconds,
        "measurements": measured,
        "times_as_fast": ratio,
        "scores": found,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"evaluation_{options.task}_{now:%Y%m%d_%H%M%S}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    raise SystemExit(main())
