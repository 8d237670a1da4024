"""Prints the summary of a run: its stages, their cost and losses, and how to load the model.

Everything is read from the run folder (`record.py`, the model's `config.json`), so the table can be
printed at any time, also for an interrupted run. Missing values are shown as a dash. The losses are those
that the run wrote, by its own names for them.

A stage's speed-up compares the time of an instance in its median step with that in a step of the whole
model, everything trained, that the same run measured on the same machine at the same sequence length:
the joint stage's median.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mslt_ds.errors import CheckpointError
from mslt_ds.json_object import read_object
from mslt_ds.model.families import auto_class
from mslt_ds.report.record import RunRecord
from mslt_ds.telemetry.metrics import eval_losses


@dataclass(frozen=True)
class StageSummary:
    """A stage of a run. None: not measured, or not yet."""

    index: int  # 1-based
    depth: int  # layers
    trainable_share: float  # of all parameters, 0 to 1
    steps: int
    seq_length: int  # tokens
    step_seconds: float | None  # median
    speed_up: float | None  # against a full-depth step
    eval_losses: dict[str, float | None]  # by the objective's names, nats


@dataclass(frozen=True)
class RunSummary:
    """A run. None: not known, or not yet."""

    stages: tuple[StageSummary, ...]
    unigram_entropy: float | None  # nats
    model: Path | None


def summarize(run_dir: Path) -> RunSummary:
    """Read the run folder. CheckpointError if it isn't one."""
    run = RunRecord.read(run_dir)
    reference = full_instance_seconds(run)
    stages = []
    for index, stage in enumerate(run.stages, start=1):
        own, full = run.step_seconds(index), reference.get(stage["seq_length"])
        stages.append(
            StageSummary(
                index=index,
                depth=stage["depth"],
                trainable_share=stage["trainable_parameters"] / stage["total_parameters"],
                steps=stage["steps"],
                seq_length=stage["seq_length"],
                step_seconds=own,
                speed_up=full * stage["global_batch_size"] / own if full and own else None,
                eval_losses=eval_losses(run.stage_ends.get(index, {})),
            )
        )
    model = Path(run.run_end["model"]) if "model" in run.run_end else None
    return RunSummary(tuple(stages), run.unigram_entropy, model)


def print_summary(run_dir: Path, console: Console | None = None) -> None:
    """Print the table, on standard output by default."""
    console = console or Console(highlight=False, soft_wrap=True)
    summary = summarize(run_dir)
    # At most 80 columns, which rich assumes for a log or a pipe.
    table = Table(
        title=f"run {run_dir}", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), title_justify="left"
    )
    # In the order of the run's own; a dictionary has each once.
    losses = list(dict.fromkeys(name for stage in summary.stages for name in stage.eval_losses))
    for heading in (
        "stage",
        "depth",
        "trained",
        "steps",
        "length",
        "step",
        "speed-up",
        *(f"{name.upper()}\nloss" for name in losses),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in summary.stages:
        table.add_row(
            f"{stage.index}/{len(summary.stages)}",
            str(stage.depth),
            f"{stage.trainable_share:.1%}",
            f"{stage.steps:,}",
            str(stage.seq_length),
            _cell("{:.4g} s", stage.step_seconds),
            _cell("{:.2f}x", stage.speed_up),
            *(_cell("{:.3f}", stage.eval_losses.get(name)) for name in losses),
        )
    console.print(table)
    for text in (
        "trained: share of all parameters; length: tokens; step: median",
        "speed-up: per instance, against a step of the whole model, all trained, in this run",
        "losses: held-out text, nats",
    ):
        console.print(text, markup=False)
    for text in _conclusions(summary, run_dir):
        console.print(text, markup=False)


def _conclusions(summary: RunSummary, run_dir: Path) -> list[str]:
    """What was learned beyond word frequencies, and how to load the model."""
    texts = []
    entropy = summary.unigram_entropy
    # An objective's first loss is that of tokens, which alone compares with their frequencies.
    name, loss = next(iter(summary.stages[-1].eval_losses.items()), ("", None))
    if entropy is not None:
        texts.append(f"unigram entropy of the training text: {entropy:.3f} nats")
        if loss is not None:
            side = "below" if loss < entropy else "above"
            texts.append(
                f"held-out {name.upper()} loss: {loss:.3f}, {abs(entropy - loss):.3f} {side} it"
            )
    if summary.model is not None:
        folder = run_dir / summary.model.name  # from which a user may have moved the model
        config = read_config_json(folder) if (folder / "config.json").is_file() else {}
        snippet = load_snippet(config, str(summary.model))
        texts += [f"model: {summary.model}", *(f"  {line}" for line in snippet.splitlines())]
    else:
        texts.append("model: not written yet; the run hasn't ended")
    return texts


def read_config_json(folder: Path) -> dict[str, Any]:
    """A model's config.json; CheckpointError if it can't be read."""
    path = folder / "config.json"
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read ({error})") from error


def load_snippet(config: Mapping[str, Any], where: str, revision: str = "main") -> str:
    """Python that loads a model and its tokenizer.

    config: the model's config.json
    where: a folder, or a name at the hub
    """
    model_class = auto_class(config.get("architectures") or ())
    given = f'"{where}"' if revision == "main" else f'"{where}", revision="{revision}"'
    return (
        f"from transformers import {model_class}, AutoTokenizer\n"
        f"model = {model_class}.from_pretrained({given})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({given})"
    )


def full_instance_seconds(run: RunRecord) -> dict[int, float]:
    """Sequence length -> seconds of an instance in a step of the whole model with nothing frozen."""
    full_depth = max(stage["depth"] for stage in run.stages)
    found: dict[int, float] = {}
    for index, stage in enumerate(run.stages, start=1):
        seconds = run.step_seconds(index)
        if stage["depth"] == full_depth and stage["frozen_layers"] == 0 and seconds:
            found[stage["seq_length"]] = seconds / stage["global_batch_size"]
    return found


def _cell(template: str, value: float | None) -> str:
    return "–" if value is None else template.format(value)
