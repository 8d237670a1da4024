"""Fine-tuning with batches of similar length, compared with padding to 128 tokens, in turns.

    python -m benchmarks.evaluation --model DIR --data DIR --task MRPC [--steps N] [--repeats N] [--write]

Both ways use the same examples, batch size, model and arithmetic. The second is the default of
transformers' `run_glue.py` (`--pad_to_max_length`, `--max_seq_length 128`): batches in random order,
all padded to 128. The seconds per step are compared, for steps of all lengths. `--scores SEEDS`
fine-tunes completely in both ways with as many seeds, and compares the means of the task's main
metric. These runs don't show a difference that isn't larger than its standard error (Welch's, for
unequal variances).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import record
from mslt_ds.distributed.world import World
from mslt_ds.evaluation.batches import training_batches
from mslt_ds.evaluation.encoded import Encoded
from mslt_ds.evaluation.encoder import Encoder
from mslt_ds.evaluation.execution import device_for, mean_step_seconds
from mslt_ds.evaluation.finetune import Batch, Settings, fine_tune
from mslt_ds.evaluation.glue.metrics import scores
from mslt_ds.evaluation.glue.recipe import GlueRecipe
from mslt_ds.evaluation.glue.runs import GlueRunner, Source
from mslt_ds.evaluation.glue.tasks import TASKS

PADDED = 128
WAYS = ("buckets", "padded to 128")


def batches(
    encoded: Encoded, recipe: GlueRecipe, way: str, seed: int, epoch: int
) -> list[list[int]]:
    """The rows of each batch of an epoch."""
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
    """Mean seconds of `steps` steps over all lengths, after one to warm up."""
    _, train, _ = runner.encoded(task)
    rows = batches(train, runner.recipe, way, 1, 0)
    rows.sort(key=lambda batch: max(train.lengths[row] for row in batch))
    middles = [(2 * index + 1) * len(rows) // (2 * steps) for index in range(steps)]
    taken = [tensors(train, rows[middle], way) for middle in middles]
    model = runner.build(task, 1)
    return mean_step_seconds(model, taken, runner.loss_of(task), runner.recipe)


def final_scores(
    runner: GlueRunner, task: str, way: str, rate: float, seed: int
) -> dict[str, float]:
    """Dev scores after a complete fine-tuning."""
    _, train, dev = runner.encoded(task)
    model = runner.build(task, seed)
    epochs = runner.recipe.epochs_for(task)

    def stream() -> Iterator[Batch]:
        for epoch in range(epochs):
            for rows in batches(train, runner.recipe, way, seed, epoch):
                yield tensors(train, rows, way)

    settings = Settings.of(runner.recipe, rate, seed, runner.steps(task))
    fine_tune(model, stream(), runner.loss_of(task), settings)
    split = dev[next(iter(dev))]
    return scores(TASKS[task], runner.outputs(model, split), split.labels)


def compare(scores_of: dict[str, list[float]]) -> dict[str, Any]:
    """The scores of two ways, one for each seed: means, spreads, and Welch's t-test of the means.

    Each way needs at least two scores. Spread: largest minus smallest.
    """
    (first, ours), (second, theirs) = scores_of.items()
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    shares = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    error = math.sqrt(sum(shares))
    # Without variance the test isn't defined.
    freedom = p_value = None
    if error:
        parts = zip(shares, (ours, theirs), strict=True)
        freedom = error**4 / sum(share**2 / (len(values) - 1) for share, values in parts)
        p_value = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    return {
        "ways": {
            way: {
                "mean": statistics.fmean(values),
                "spread": max(values) - min(values),
                "standard_deviation": statistics.stdev(values),
                "seeds": len(values),
            }
            for way, values in scores_of.items()
        },
        "difference": {
            "of": f"{first} - {second}",
            "mean": difference,
            "standard_error": error,
            "degrees_of_freedom": freedom,
            "p_value": p_value,
            "exceeds_standard_error": abs(difference) > error,
        },
    }


def lines_of(comparison: dict[str, Any]) -> Iterator[str]:
    """The lines that print a comparison, in percent."""
    for way, found in comparison["ways"].items():
        yield (
            f"{way:16} {comparison['metric']}: mean {100 * found['mean']:.2f}, "
            f"spread {100 * found['spread']:.2f}, standard deviation "
            f"{100 * found['standard_deviation']:.2f} ({found['seeds']} seeds)"
        )
    found = comparison["difference"]
    exceeds = "exceeds" if found["exceeds_standard_error"] else "doesn't exceed"
    p_value = "" if found["p_value"] is None else f"; p = {found['p_value']:.2f}"
    yield (
        f"{found['of']}: {100 * found['mean']:+.2f}, which {exceeds} its standard error "
        f"{100 * found['standard_error']:.2f}{p_value}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation")
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--data", required=True, help="GLUE's files")
    parser.add_argument("--task", default="MRPC", choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=6, help="steps of a measurement")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way")
    parser.add_argument(
        "--scores", type=int, default=0, metavar="SEEDS",
        help="also fine-tune in both ways with this many seeds, 2 or more, and compare the scores",
    )  # fmt: skip
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--train-examples", type=int)
    parser.add_argument(
        "--write", action="store_true", help="write a dated JSON to benchmarks/results/"
    )
    options = parser.parse_args(arguments)
    if options.scores < 0 or options.scores == 1:
        parser.error(f"--scores: {options.scores}; a difference's error takes 2 seeds or more")

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
    comparison = None
    if options.scores:
        metric = task.metrics[0]
        comparison = {"metric": metric} | compare(
            {way: [scores_of[metric] for scores_of in found[way]] for way in WAYS}
        )
        for line in lines_of(comparison):
            print(line)
    if options.write:
        figures = {
            "task": task.name,
            "seconds_a_step": seconds,
            "measurements": measured,
            "times_as_fast": ratio,
            "scores": found,
            "comparison": comparison,
        }
        record.write(
            f"evaluation_{task.name}", ["benchmarks.evaluation", *(arguments or sys.argv[1:])],
            figures, device=device, packages=("torch", "transformers", "torchmetrics"),
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
