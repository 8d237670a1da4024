"""The model card of an exported folder: what was trained how, on which data, with which losses.

Metadata are those of Hugging Face's model cards (https://huggingface.co/docs/hub/model-cards). The licence
is the user's to state, so its field is a comment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mslt_ds.config.sections import ScheduleConfig
from mslt_ds.data.bert_tokenizer import read_settings
from mslt_ds.disk.card import write_card
from mslt_ds.disk.run_folder import BEFORE_DECAY
from mslt_ds.durations import duration
from mslt_ds.errors import CheckpointError
from mslt_ds.model.objective import Objective
from mslt_ds.plan.schedule import decay_start
from mslt_ds.report.record import RunRecord
from mslt_ds.report.summary import load_snippet, read_config_json
from mslt_ds.telemetry.metrics import eval_losses


@dataclass(frozen=True)
class Score:
    """A score of an evaluation of the model. value: 0 to 1."""

    task: str
    metric: str
    value: float
    spread: float
    runs: int


def write_model_card(run_dir: Path, name: str) -> None:
    """Write the card of the run's folder `name` (`model`, `before_decay`, `stages/<k>/start`,
    `stages/<k>/end`) from what the run has written so far, unless a user has edited it."""
    write_card(run_dir / name, model_card(RunRecord.read(run_dir), name))


def model_card(
    run: RunRecord,
    name: str,
    *,
    where: str | None = None,
    revision: str = "main",
    scores: Sequence[Score] = (),
) -> str:
    """The card's text.

    name: of the model's folder inside of the run's
    where, revision: what `from_pretrained` takes; None: the folder
    """
    folder = run.path / name
    config = read_config_json(folder)
    moment = _moment(run, name)
    ended = sum(stage.end_step <= moment.step for stage in run.stage_plan.stages)
    parts = [
        _metadata(run, folder, scores),
        f"# {moment.title}",
        _what(run, config, moment),
        "## Training",
        _stage_table(run, moment.step),
        "\n".join(f"- {line}" for line in _training(run, ended)),
        *_losses(run, ended),
        *_scores(scores),
        "## Use",
        f"```python\n{load_snippet(config, where or str(folder), revision)}\n```",
        "## Licence and limits",
        "The licence of the weights, the source and the licence of the text, intended uses and known "
        "biases aren't known to the program that wrote this card. State them here and in the metadata "
        "above before you publish the model.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


@dataclass(frozen=True)
class _Moment:
    """When a model of a run was written."""

    step: int  # steps that were done
    title: str
    words: str = ""  # "" at the run's end


def _moment(run: RunRecord, name: str) -> _Moment:
    """When the run's folder `name` was written."""
    total, stages = run.total_steps, run.stage_plan.stages
    if name == BEFORE_DECAY:
        schedule = ScheduleConfig.model_validate(run.recipe.get("schedule"))
        step = decay_start(schedule, total) or 0
        words = f"step {step:,} of {total:,}, before the learning rate falls"
        return _Moment(step, f"{run.name}, before the decay", words)
    if name == "model":
        return _Moment(total, run.name)
    _, number, at = name.split("/")
    stage = stages[int(number) - 1]
    step = stage.end_step if at == "end" else stage.start_step
    if step == total:
        return _Moment(step, run.name)
    words = f"the {at} of stage {number} of {len(stages)}"
    return _Moment(step, f"{run.name}, {at} of stage {number}", words)


def _metadata(run: RunRecord, folder: Path, scores: Sequence[Score]) -> str:
    objective = run.objective or Objective
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": objective.pipeline_tag,
        **_mask_token(folder),
        "tags": ["mslt-ds", "pretraining", str(run.plan.get("method", "custom"))],
    }
    if scores:
        metadata["model-index"] = [{"name": run.name, "results": [_result(s) for s in scores]}]
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{text}"
        "# license: the licence of the weights, such as apache-2.0\n"
        "# language: the language of the text, such as en\n"
        "# datasets: the text's name at the hub, if it has one\n---"
    )


def _mask_token(folder: Path) -> dict[str, str]:
    """What a reader of the card writes for a word to fill in, if the tokenizer's settings say it."""
    path = folder / "tokenizer_config.json"
    try:
        found = read_settings(path).get("mask_token")
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    token = found.get("content") if isinstance(found, dict) else found
    return {"mask_token": token} if token else {}


def _result(score: Score) -> dict[str, Any]:
    """An entry of the metadata's `model-index`."""
    is_squad = score.task.startswith("SQuAD")
    return {
        "task": {"type": "question-answering" if is_squad else "text-classification"},
        "dataset": {"type": "squad" if is_squad else "glue", "name": f"{'' if is_squad else 'GLUE '}{score.task}", "split": "validation"},
        "metrics": [{"type": score.metric, "value": round(score.value, 4), "name": f"{score.metric} on dev"}],
    }  # fmt: skip


def _what(run: RunRecord, config: dict[str, Any], moment: _Moment) -> str:
    family = str(config.get("model_type", "encoder")).upper()
    sizes = (
        f"{config.get('num_hidden_layers')} layers, hidden size {config.get('hidden_size')}, "
        f"{config.get('num_attention_heads')} heads, vocabulary {config.get('vocab_size', 0):,}"
    )
    how = {
        "mslt": "by multi-stage layerwise training (Yang et al. 2020, arXiv 2011.13635)",
        "stacking": "by progressive stacking (Gong et al. 2019)",
        "full": "with all layers from the first step to the last",
    }.get(run.plan.get("method", ""), "in stages")
    text = f"A {family} encoder ({sizes}), pretrained {how} with mslt-ds."
    if moment.words:
        text += f" This is the model at {moment.words}, not a finished one."
    return text


def _stage_table(run: RunRecord, step: int) -> str:
    """The stages that have begun after `step` steps."""
    if not step:
        return "The stage's first step is still to come."
    rows = ["| stage | layers | trained | steps | sequence length | batch |", "|---|---|---|---|---|---|"]  # fmt: skip
    for stage in run.stage_plan.stages:
        done = min(step - stage.start_step, stage.steps)
        if done > 0:
            steps = f"{done:,}" if done == stage.steps else f"{done:,} of {stage.steps:,}"
            rows.append(
                f"| {stage.index} | {stage.depth} | {stage.trainable_layers} | {steps} | "
                f"{stage.seq_length} | {stage.global_batch_size:,} |"
            )
    return "\n".join(rows)


def _training(run: RunRecord, last: int) -> list[str]:
    """Recipe, data, hardware, and the time of the stages up to `last`: what is known."""
    recipe = run.recipe
    data, train = recipe.get("data", {}), recipe.get("train", {})
    optimizer, schedule = recipe.get("optimizer", {}), recipe.get("schedule", {})
    start = run.starts[-1] if run.starts else {}
    found = []
    if data:
        words = f"Instances: `{data.get('input_format')}`"
        if "masking" not in (run.objective or Objective).unread:
            words += f", masking `{data.get('masking')}`, {data.get('masked_lm_prob', 0):.0%} of the tokens"
        found.append(words)
    if optimizer:
        found.append(
            f"Optimizer: {optimizer.get('name')}, learning rate {optimizer.get('learning_rate')}, weight "
            f"decay {optimizer.get('weight_decay')}, schedule `{schedule.get('name')}` with "
            f"{schedule.get('warmup_steps', 0):,} warm-up steps, precision {train.get('precision')}"
        )
    if "seed" in recipe:
        found.append(f"Seed: {recipe['seed']}")
    for key, digest in start.get("data", {}).items():
        found.append(f"Token store of `{key}`: digest `{digest[:16]}`")
    if start:
        versions = ", ".join(f"{name} {value}" for name, value in start["versions"].items())
        found += [f"Hardware: {start['world_size']} x {start['device']}", f"Versions: {versions}"]
    if taken := sum(run.stage_seconds(index) for index in range(1, last + 1)):
        of_ended = "" if last == len(run.stages) else " of the stages that had ended"
        found.append(f"Time of the steps{of_ended}: {duration(taken)}")
    return found


def _losses(run: RunRecord, last: int) -> list[str]:
    ends = {
        index: losses
        for index in range(1, last + 1)
        if (losses := eval_losses(run.stage_ends.get(index, {})))
    }
    if not ends:
        return []
    names = list(dict.fromkeys(name for losses in ends.values() for name in losses))
    rows = ["| after stage | " + " | ".join(name.upper() for name in names) + " |"]
    rows.append("|---|" + "---|" * len(names))
    for index, losses in ends.items():
        cells = ("–" if losses.get(n) is None else f"{losses[n]:.3f}" for n in names)
        rows.append(f"| {index} | {' | '.join(cells)} |")
    text = "Held-out losses in nats."
    if run.unigram_entropy is not None:
        text += f" The unigram entropy of the training text is {run.unigram_entropy:.3f} nats."
    return ["## Losses", "\n".join(rows), text]


def _scores(scores: Sequence[Score]) -> list[str]:
    if not scores:
        return []
    rows = ["| task | metric | median (%) | spread | runs |", "|---|---|---|---|---|"]
    rows += [
        f"| {s.task} | {s.metric} | {100 * s.value:.1f} | {100 * s.spread:.1f} | {s.runs} |"
        for s in scores
    ]
    note = "On dev: the median over the seeds at the best learning rate, and the range of these scores."
    return ["## Scores", "\n".join(rows), note]
