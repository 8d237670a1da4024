"""`mslt-ds probe`: which growth operator is best, some hundred steps after the growth.

A model is worse just after it has grown. How much worse predicts little about its further training; its
loss some hundred steps later predicts much (Karp et al. 2024, "Landscape-Aware Growing: The Power of a
Little LAG", arXiv 2406.02469). So each operator grows the same model, the grown models train for the same
steps on the same batches, and their held-out losses are compared. Each is a run of the main program, kept
below the output folder: a probe that was stopped resumes. The folder knows what it is about, so it never
answers another question.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mslt_ds import paths
from mslt_ds.atomic import replace_text
from mslt_ds.config import strict_yaml
from mslt_ds.config.sections import Operator
from mslt_ds.data.store import TokenStore
from mslt_ds.disk import checkpoint
from mslt_ds.disk.model_folder import load_weights, read_config, save_weights, weights_digest
from mslt_ds.errors import CheckpointError, DivergenceError, MsltError, RecipeError
from mslt_ds.json_object import read_object
from mslt_ds.plan.methods import WHOLE_MODEL_OPERATORS
from mslt_ds.recipe.loading import Recipe, load_recipe
from mslt_ds.recipe.rules import growth_problem
from mslt_ds.stage_states import StageStates
from mslt_ds.state import TrainingState, Weights
from mslt_ds.telemetry.metrics import read_lines, token_loss

_AFTER = 10
"""Steps whose mean loss stands for the moment after growth."""

FINDINGS = "probe.json"
"""The file with the losses of each trial."""
_QUESTION = "question.json"


class ProbeError(MsltError):
    """The main program failed on one of the runs."""


@dataclass(frozen=True)
class Trial:
    """One operator at one learning rate."""

    operator: str
    learning_rate: float

    @property
    def name(self) -> str:
        rate = f"{self.learning_rate:.3g}".replace("+", "")  # which a run's name can't have
        return f"{self.operator}_{rate}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=paths.path, required=True, metavar="DIR",
        help="a folder of a run that holds weights: RUN/stages/K/end or RUN/checkpoints/step_N",
    )  # fmt: skip
    parser.add_argument(
        "--operators", required=True, metavar="NAME,NAME,...",
        help=f"growth operators, of {', '.join(get_args(Operator))}",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="steps of each")
    parser.add_argument(
        "--learning-rates", metavar="RATE,RATE,...", help="default: the recipe's peak rate"
    )
    parser.add_argument(
        "--depth", type=int, metavar="LAYERS", help="of the grown model (default: the final one)"
    )
    parser.add_argument(
        "--trainable-layers", type=int, metavar="N",
        help="train only so many, from the top (default: all); not with operators that move layers",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=paths.path, metavar="DIR", help="default: RUN/probe/<steps>"
    )


def run(arguments: argparse.Namespace) -> int:
    run_dir = _run_of(arguments.checkpoint)
    recipe = load_recipe(run_dir / "recipe.yaml")
    if recipe.config.data.eval_path is None:
        raise RecipeError(
            f"{run_dir / 'recipe.yaml'}: data.eval_path: missing; operators are compared on held-out text"
        )
    store = TokenStore.open(Path(recipe.config.data.path))
    states = StageStates(recipe.config, recipe.plan, store)
    depth_from, weights = _read(arguments.checkpoint, states)
    depth = arguments.depth or recipe.config.model.num_hidden_layers
    trainable = arguments.trainable_layers or depth
    trials = _trials(arguments, recipe, depth_from, depth, trainable)
    output = arguments.output or run_dir / "probe" / str(arguments.steps)
    _claim(output, _question(recipe, weights, depth, trainable, arguments.steps))
    for trial in trials:
        if _finished(output / trial.name):
            continue
        print(f"{trial.operator} at learning rate {trial.learning_rate:g}", flush=True)
        changes = _changes(recipe, depth, trainable, arguments.steps, trial)
        start = output / "start" / trial.operator
        if not start.exists():
            start.parent.mkdir(parents=True, exist_ok=True)
            grown = states.grow(TrainingState(0, weights), depth_from, depth, trial.operator)
            save_weights(start, grown.weights, states.hf_config(depth), store.tokenizer_dir)
        _train(recipe, changes, start, output, trial)
    rows = [_row(trial, output / trial.name) for trial in trials]
    rows.sort(key=lambda row: row["held_out_loss"])
    _write(rows, trials, output)
    print(_text(rows, arguments.steps))
    return 0


def _run_of(folder: Path) -> Path:
    """The run's folder above a checkpoint or model folder; CheckpointError if there is none."""
    for parent in folder.resolve().parents:
        if (parent / "recipe.yaml").exists():
            return parent
    raise CheckpointError(
        f"--checkpoint: {folder}: no folder above it holds a run's recipe.yaml; give a folder of a run, "
        "such as RUN/stages/1/end"
    )


def _read(folder: Path, states: StageStates) -> tuple[int, Weights]:
    """(layers, weights) of a model folder or a checkpoint."""
    if (folder / "config.json").exists():
        return read_config(folder).num_hidden_layers, load_weights(folder)
    state = checkpoint.load(folder, states.shapes_after)
    return states.plan.stage_at(max(0, state.step - 1)).depth, state.weights


def _question(
    recipe: Recipe, weights: Weights, depth: int, trainable: int, steps: int
) -> dict[str, Any]:
    """What the trials of one output folder share."""
    keys = json.dumps(recipe.config.model_dump(mode="json"), sort_keys=True)
    return {
        "weights of --checkpoint": weights_digest(weights),
        "recipe of its run": hashlib.sha256(keys.encode()).hexdigest()[:16],
        "--depth": depth, "--trainable-layers": trainable, "--steps": steps,
    }  # fmt: skip


def _claim(output: Path, question: dict[str, Any]) -> None:
    """Make the folder; CheckpointError if it holds trials that don't compare with these."""
    path = output / _QUESTION
    try:
        found = read_object(path) if path.exists() else question
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: can't be read ({error}); choose another --output"
        ) from error
    if other := sorted(key for key in question if question[key] != found.get(key)):
        raise CheckpointError(
            f"{output}: holds trials of another {' and another '.join(other)}; choose another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(question, indent=1) + "\n")


def _trials(
    arguments: argparse.Namespace, recipe: Recipe, depth_from: int, depth: int, trainable: int
) -> list[Trial]:
    """All that was asked for; RecipeError with a line for each problem."""
    operators = arguments.operators.split(",")
    problems = [
        f"--operators: {name!r}; choose from {', '.join(get_args(Operator))}"
        for name in operators
        if name not in get_args(Operator)
    ]
    rates = [recipe.config.optimizer.learning_rate]
    if arguments.learning_rates is not None:
        try:
            rates = [float(rate) for rate in arguments.learning_rates.split(",")]
        except ValueError:
            problems.append(f"--learning-rates: {arguments.learning_rates!r}; expected numbers")
    if arguments.steps < 1:
        problems.append(f"--steps: {arguments.steps}; at least one")
    if not depth_from < depth <= recipe.config.model.num_hidden_layers:
        problems.append(
            f"--depth: {depth}; the model in {arguments.checkpoint} has {depth_from} layers, and the "
            f"recipe's final one {recipe.config.model.num_hidden_layers}"
        )
    else:
        problems += [
            f"--operators: {problem}"
            for name in operators
            if name in get_args(Operator)
            and (problem := growth_problem(recipe.config.model, depth_from, depth, name))
        ]
    if not 1 <= trainable <= depth:
        problems.append(f"--trainable-layers: {trainable}; choose 1 to {depth}")
    elif trainable < depth:
        problems += [
            f"--trainable-layers: {trainable}, but {name} needs every layer to train"
            for name in operators
            if name in WHOLE_MODEL_OPERATORS
        ]
    if problems:
        raise RecipeError("\n".join(problems))
    return [Trial(operator, rate) for operator in operators for rate in rates]


def _changes(
    recipe: Recipe, depth: int, trainable: int, steps: int, trial: Trial
) -> dict[str, Any]:
    """The recipe's keys, with one stage from the grown model on: a warm-up, then one rate."""
    stage: dict[str, Any] = {"depth": depth, "steps": steps}
    if trainable < depth:
        stage["trainable_layers"] = trainable
    keys = recipe.config.model_dump(mode="json")
    keys["model"]["num_hidden_layers"] = depth
    keys["plan"] = {"method": "custom", "stages": [stage]}
    keys["schedule"] = {"name": "constant", "warmup_steps": min(steps // 5, 50)}
    keys["optimizer"]["learning_rate"] = trial.learning_rate
    keys["telemetry"]["log_every_steps"] = max(1, min(_AFTER, steps // 20))
    keys["checkpoint"]["every_steps"] = max(1, steps // 2)
    return keys


def _train(
    recipe: Recipe, changes: dict[str, Any], start: Path, output: Path, trial: Trial
) -> None:
    changes["name"], changes["output_dir"] = trial.name, str(output)
    changes["plan"]["init_from"] = str(start)
    file, log = output / f"{trial.name}.yaml", output / f"{trial.name}.log"
    replace_text(file, strict_yaml.dump(changes))
    with log.open("w") as sink:
        command = [sys.executable, "-m", "mslt_ds.cli", "train", "--config", str(file)]
        code = subprocess.run(
            command, stdout=sink, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code == DivergenceError.exit_code:
        _diverged(output / trial.name).touch()
    elif code:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-10:])
        raise ProbeError(f"{trial.name} ended with exit code {code}; {log}:\n{tail}")


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    return list(read_lines(file)) if file.exists() else []


def _finished(run_dir: Path) -> bool:
    ended = any(line.get("event") == "run_end" for line in _lines(run_dir))
    return ended or _diverged(run_dir).exists()


def _diverged(run_dir: Path) -> Path:
    """The file that is there once the trial has diverged."""
    return run_dir.with_name(f"{run_dir.name}.diverged")


def _row(trial: Trial, run_dir: Path) -> dict[str, Any]:
    """A trial's losses: after growth, the highest and the last of training, held-out at the end."""
    lines = _lines(run_dir)
    losses = [token_loss(line) for line in lines if "event" not in line]
    held_out = [token_loss(line) for line in lines if line.get("event") == "stage_end"]
    known = [loss for loss in losses if loss is not None]
    has_ended = held_out and not _diverged(run_dir).exists()
    return {
        "operator": trial.operator,
        "learning_rate": trial.learning_rate,
        "first_loss": losses[0] if losses else None,
        "highest_loss": max(known, default=None),
        "last_loss": losses[-1] if losses else None,
        "held_out_loss": held_out[-1] if has_ended else float("inf"),
    }


def _write(rows: Sequence[dict[str, Any]], trials: Sequence[Trial], output: Path) -> None:
    """probe.json, curves.csv and the figure curves.{png,svg}."""
    replace_text(output / FINDINGS, json.dumps(rows, indent=1) + "\n")
    curves = {
        trial.name: [
            (line["step"] + 1, loss)
            for line in _lines(output / trial.name)
            if "event" not in line and (loss := token_loss(line)) is not None
        ]
        for trial in trials
    }
    with (output / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["operator_rate", "step", "loss"])
        writer.writerows([name, *point] for name, points in curves.items() for point in points)
    _draw(curves, output / "curves")
    for trial in trials:
        shutil.rmtree(output / "start" / trial.operator, ignore_errors=True)


def read_trials(output: Path) -> tuple[list[dict[str, Any]], int]:
    """What a finished probe wrote: the losses of each trial, the best first, and the steps of each."""
    try:
        steps = read_object(output / _QUESTION)["--steps"]
        return json.loads((output / FINDINGS).read_text()), steps
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{output}: no output of `mslt-ds probe` ({error!r})") from error


def _draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
    axes.set_xlabel("steps after growth")
    axes.set_ylabel("training loss (nats)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=150)
    plt.close(figure)


def _text(rows: Sequence[dict[str, Any]], steps: int) -> str:
    """The table that is printed, the best first."""

    def number(value: float | None) -> str:
        return "diverged" if value is None or value == float("inf") else f"{value:.3f}"

    lines = [
        f"{'operator':<14}{'rate':>9}{'first':>10}{'highest':>10}{'last':>10}{'held-out':>10}",
        *(
            f"{row['operator']:<14}{row['learning_rate']:>9.3g}{number(row['first_loss']):>10}"
            f"{number(row['highest_loss']):>10}{number(row['last_loss']):>10}"
            f"{number(row['held_out_loss']):>10}"
            for row in rows
        ),
    ]
    best = rows[0]
    if best["held_out_loss"] == float("inf"):
        return "\n".join([*lines, "no trial has a held-out loss: all diverged"])
    lead = ""
    if len(rows) > 1 and rows[1]["held_out_loss"] != float("inf"):
        lead = f", {rows[1]['held_out_loss'] - best['held_out_loss']:.3f} nats ahead of the next"
    lines.append(
        f"best after {steps} steps: {best['operator']} at learning rate {best['learning_rate']:g}{lead}"
    )
    return "\n".join(lines)
