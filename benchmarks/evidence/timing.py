"""Seconds of a step of each method's stages, measured in turns on a machine that does nothing else.

Times of the cells themselves aren't comparable: cells run for hours, beside each other and beside
whatever else the machine does.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from typing import Any

from benchmarks.evidence.experiment import Cell, Changes, Experiment, checked, merged, recipe_of
from benchmarks.evidence.running import Results, environment, launch, prepare, write_recipe
from mslt_ds.atomic import replace_text
from mslt_ds.data.store import TokenStore
from mslt_ds.planning.calibrate import written_out
from mslt_ds.telemetry.metrics import read_lines


def measure(experiment: Experiment, results: Results, *, steps: int, repeats: int) -> None:
    """Write the median seconds of a step, for each stage of each method, into `timing.json`.

    steps: of each stage in each turn
    """
    prepare(experiment, results)
    vocab_size = TokenStore.open(results.train).vocab_size
    seconds: dict[str, list[list[float]]] = {method: [] for method in experiment.methods}
    for turn in range(repeats):
        for method in experiment.methods:
            cell = Cell(
                method, experiment.budgets[-1], experiment.learning_rates[0], experiment.seeds[0]
            )
            recipe = shortened(recipe_of(experiment, cell, vocab_size), steps)
            seconds[method].append(_run(experiment, results, recipe))
            print(f"turn {turn + 1}: {method} {seconds[method][-1]}", flush=True)
    medians = {
        method: [statistics.median(stage) for stage in zip(*turns, strict=True)]
        for method, turns in seconds.items()
    }
    content: dict[str, Any] = {"step_seconds": medians, "turns": seconds}
    replace_text(results.timing, json.dumps(content, indent=1) + "\n")


def shortened(recipe: Changes, steps: int) -> Changes:
    """The recipe with `steps` steps in each stage, each of them logged, nothing saved on the way."""
    stages = [written_out(stage, steps) for stage in checked(recipe).plan.stages]
    changes = {
        "plan": {"method": "custom", "stages": stages},
        "schedule": {"name": "constant", "warmup_steps": 0, "decay_steps": None},
        "telemetry": {"log_every_steps": 1},
        "checkpoint": {"every_steps": 10**6},
    }
    without_plan = {key: value for key, value in recipe.items() if key != "plan"}
    return merged(without_plan, changes)


def _run(experiment: Experiment, results: Results, recipe: Changes) -> list[float]:
    """Median seconds of a step of each stage."""
    run_dir = results.folder / "runs" / "timing"
    shutil.rmtree(run_dir, ignore_errors=True)
    recipe_file = write_recipe(results, run_dir, recipe)
    subprocess.run(
        [*launch(experiment), "--config", str(recipe_file)],
        check=True, stdout=subprocess.DEVNULL, env=environment(experiment),
    )  # fmt: skip
    ends = [
        line for line in read_lines(run_dir / "metrics.jsonl") if line.get("event") == "stage_end"
    ]
    shutil.rmtree(run_dir)
    recipe_file.unlink()
    return [end["median_step_seconds"] for end in ends]
