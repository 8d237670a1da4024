"""Measures a few steps of every stage on this machine, by the run itself.

What is measured is `mslt-ds train` on the recipe with its stages cut short, in a temporary folder: the
same engine, batches, evaluation and checkpoints, in as many processes as the plan has ranks. A step's
time is the median of what the run logged, without its first lines. What isn't steps (starting, making
engines, first steps, evaluation, models, the checkpoint of a stage's end) is the wall-clock time that
the steps leave, stage by stage; the plan's other checkpoints are added, each as long as writing its files took.

Stages with more than a few micro-batches in a step are measured with 1 and with 4 of them, and a line
through both gives the step's time. Without a token store at `data.path`, the text is synthetic.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mslt_ds.atomic import flush_to_disk
from mslt_ds.config import strict_yaml
from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import EnvironmentProblem
from mslt_ds.plan.hours import Model, StepTime
from mslt_ds.plan.stages import Plan, Stage
from mslt_ds.recipe.loading import Recipe
from mslt_ds.telemetry.metrics import read_lines

_FEW, _MORE = 1, 4  # micro-batches in a step


@dataclass(frozen=True)
class StageTimes:
    """What was measured of a stage, in seconds."""

    step: float
    overhead: float  # all that isn't steps


@dataclass(frozen=True)
class Calibration:
    """What was measured, in the order of the plan's stages."""

    stages: tuple[StageTimes, ...]
    checkpoint_seconds: float
    steps: int  # of each stage

    def step_time(self, model: Model, plan: Plan) -> StepTime:
        """Seconds of a stage's step. One of a twin, which wasn't measured, takes as long for an operation
        as the plan's stage with the most operations does."""
        largest = max(plan.stages, key=model.step_flops)
        rate = model.step_flops(largest) / self.stages[largest.index - 1].step

        def seconds(stage: Stage) -> float:
            own = plan.stages[stage.index - 1]
            same = all(
                getattr(stage, key) == getattr(own, key)
                for key in ("depth", "trained", "train_embeddings")
            )
            return self.stages[stage.index - 1].step if same else model.step_flops(stage) / rate

        return seconds

    def overhead(self, config: RunConfig, plan: Plan) -> list[float]:
        """Seconds of each stage of `plan` that aren't steps."""
        every = config.checkpoint.every_steps
        return [
            times.overhead
            + self.checkpoint_seconds * ((stage.end_step - 1) // every - stage.start_step // every)
            for times, stage in zip(self.stages, plan.stages, strict=True)
        ]

    def described(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "steps": self.steps,
            "checkpoint_seconds": self.checkpoint_seconds,
            "stages": [vars(stage) for stage in self.stages],
        }


def calibrate(recipe: Recipe, vocab_size: int, world_size: int, steps: int) -> Calibration:
    """Run every stage for `steps` steps in `world_size` processes. What they print goes to standard
    error. EnvironmentProblem if a run fails."""
    with tempfile.TemporaryDirectory(prefix="mslt_ds_calibrate_") as folder:
        stores = _stores(recipe.config, Path(folder))
        accumulated = [
            stage.gradient_accumulation_steps(world_size) for stage in recipe.plan.stages
        ]

        def measured(name: str, at_most: int) -> tuple[list[StageTimes], float]:
            short = _short_recipe(recipe, vocab_size, world_size, steps, at_most)
            short |= {"name": name, "output_dir": folder, "data": short["data"] | stores}
            path = Path(folder) / f"{name}.yaml"
            path.write_text(strict_yaml.dump(short))
            started = time.time()
            _train(path, world_size)
            run_dir = Path(folder) / name
            return _read(run_dir, started), _checkpoint_seconds(run_dir)

        stages, checkpoint_seconds = measured("more", _MORE)
        if max(accumulated) > _MORE:
            few, _ = measured("few", _FEW)
            stages = [
                StageTimes(_on_line(first.step, then.step, number), then.overhead)
                for first, then, number in zip(few, stages, accumulated, strict=True)
            ]
        return Calibration(tuple(stages), checkpoint_seconds, steps)


def _on_line(few: float, more: float, accumulated: int) -> float:
    """Seconds of a step of so many micro-batches, by those of _FEW and _MORE (or of all, if fewer)."""
    if accumulated <= _MORE:
        return more
    each = (more - few) / (_MORE - _FEW)
    return few + each * (accumulated - _FEW)


def written_out(stage: Stage, steps: int) -> dict[str, Any]:
    """The stage as an entry of `plan.stages`, with `steps` steps."""
    return {
        "depth": stage.depth,
        "trainable_layers": stage.trainable_layers,
        "train_embeddings": stage.train_embeddings,
        "steps": steps,
        "seq_length": stage.seq_length,
        "init": stage.init if stage.init not in ("fresh", "pretrained", "keep") else None,
        "micro_batch_size": stage.micro_batch_size,
        "global_batch_size": stage.global_batch_size,
        "masked_lm_prob": stage.masked_lm_prob,
    }


def _short_recipe(
    recipe: Recipe, vocab_size: int, world_size: int, steps: int, accumulated: int
) -> dict[str, Any]:
    """The recipe with its stages written out, `steps` steps each, of at most so many micro-batches."""
    config = recipe.config
    stages = [
        written_out(stage, steps)
        | {
            "global_batch_size": stage.micro_batch_size
            * world_size
            * min(accumulated, stage.gradient_accumulation_steps(world_size))
        }
        for stage in recipe.plan.stages
    ]
    short = json.loads(json.dumps(config.model_dump(mode="json")))
    short["model"]["vocab_size"] = vocab_size
    short["plan"] = {"method": "custom", "stages": stages, "init_from": config.plan.init_from}
    if config.plan.freeze == "top":
        short["plan"]["freeze"] = "top"
    if config.plan.new_vocabulary is not None:
        short["plan"]["new_vocabulary"] = {"steps": 0}  # its stage is among the others
    # Rates of the whole run's schedule mean nothing in so few steps.
    short["schedule"] = {"name": "constant"}
    short["checkpoint"]["every_steps"] = steps * len(stages) + 1
    short["telemetry"] = {"log_every_steps": max(1, steps // 12)}
    return short


def _stores(config: RunConfig, folder: Path) -> dict[str, str]:
    """`data.path`, and `data.eval_path` where the recipe has one, each made up if it doesn't exist."""
    given = {"path": config.data.path, "eval_path": config.data.eval_path}
    missing = {key for key, path in given.items() if path and not Path(path).exists()}
    if missing:
        made_up = make_up_store(folder)
        # Both of them: they have to have one vocabulary.
        given = {key: str(made_up) for key, path in given.items() if path}
    return {key: path for key, path in given.items() if path}


def make_up_store(folder: Path) -> Path:
    """A token store of made-up text under `folder`, with a vocabulary of 1,000: 100 documents, 1 MB."""
    text, store = folder / "text.txt", folder / "store"
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 8))) for _ in range(5000)]
    with text.open("w", encoding="utf-8") as file:
        for _ in range(100):
            for _ in range(20):
                sentences = (" ".join(draw.choices(words, k=draw.randint(5, 25))) for _ in range(6))
                file.write(". ".join(sentences) + ".\n")
            file.write("\n")
    command = ["prepare", "--input", str(text), "--output", str(store), "--vocab-size", "1000"]
    _call([sys.executable, "-m", "mslt_ds.cli", *command])
    return store


def _train(path: Path, world_size: int) -> None:
    """`mslt-ds train` in so many processes on this machine."""
    command = [sys.executable, "-m", "mslt_ds.cli"]
    if world_size > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc-per-node={world_size}", "-m", "mslt_ds.cli"]
    _call([*command, "train", "--config", str(path)])


def _call(command: Sequence[str]) -> None:
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in launched}
    finished = subprocess.run(command, stdout=sys.stderr, env=environment, check=False)
    if finished.returncode:
        raise EnvironmentProblem(
            f"{' '.join(command)} ended with {finished.returncode}; its messages are above"
        )


def _read(run_dir: Path, started: float) -> list[StageTimes]:
    """The times of each stage of a short run that began at `started`, Unix time."""
    lines = list(read_lines(run_dir / "metrics.jsonl"))
    begins = [line["time"] for line in lines if line.get("event") == "stage_start"]
    ends = [*begins[1:], *(line["time"] for line in lines if line.get("event") == "run_end")]
    found = []
    # A stage's own time goes from where the one before ended its last step to its own last step's end;
    # making an engine therefore counts with the stage before, and starting with the first.
    for number, (begin, end) in enumerate(zip([started, *begins[1:]], ends, strict=True), start=1):
        logged = [line for line in lines if line.get("stage") == number and "event" not in line]
        step = statistics.median(line["step_seconds"] for line in logged[1:])
        steps = logged[-1]["step"] - logged[0]["step"]
        count = steps + steps // (len(logged) - 1)
        found.append(StageTimes(step, max(0.0, end - begin - count * step)))
    return found


def _checkpoint_seconds(run_dir: Path) -> float:
    """How long it takes to write the files of a run's last checkpoint once more."""
    newest = max((run_dir / "checkpoints").glob("step_*"))
    began = time.perf_counter()
    copy = Path(shutil.copytree(newest, run_dir / "copy"))
    for file in copy.iterdir():
        flush_to_disk(file)
    return time.perf_counter() - began
