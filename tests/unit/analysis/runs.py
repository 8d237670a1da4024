"""Run folders as a run leaves them, small and without training one."""

from __future__ import annotations

import json
import math
from pathlib import Path

from mslt_ds.plan.cost import describe_plan
from mslt_ds.recipe.loading import parse_recipe

ENTROPY = 6.25
T0 = 1_600_000_000.0


def write_run(
    folder: Path, method: str = "mslt", *, steps: int | None = None, resumed_at: int | None = None,
    name: str | None = None, step_seconds: float = 0.1, trust: bool = False, **keys,
) -> Path:  # fmt: skip
    """A run of 4 layers; `mslt` has stages of 2 and 4 layers of 100 steps and 50 joint steps.

    steps: after which it was killed; None: finished
    resumed_at: a step at which it was killed and went on an hour later
    step_seconds: of a step of one layer's forward and backward pass
    """
    recipe = parse_recipe(
        {
            "name": name or method,
            "model": {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4},
            "plan": {"method": method, "num_stages": 2, "steps_per_stage": 100, "joint_steps": 50},
            "data": {"path": str(folder / "no-store"), "seq_length": 64},
            "train": {"global_batch_size": 8, "micro_batch_size": 4},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        }
        | keys
    )
    plan = describe_plan(recipe.config, recipe.plan, vocab_size=500, world_size=2, zero_stage=0)
    lines, now = [], T0
    for stage in recipe.plan.stages:
        own = step_seconds * (stage.depth + 2 * stage.trainable_layers) / 3
        described = {"stage": stage.index, "depth": stage.depth}
        now += 2.0
        lines.append({"event": "stage_start", "step": stage.start_step, "time": now} | described)
        for step in range(stage.start_step + 9, stage.end_step, 10):
            if resumed_at is not None and step > resumed_at >= step - 10:
                now += 3600
                lines.append({"event": "stage_start", "step": step - 9, "time": now} | described)
            now += 10 * own
            line = {
                "step": step, "time": now, "stage": stage.index,
                "mlm_loss": ENTROPY - 2 + 4 * math.exp(-step / 60), "nsp_loss": 0.6,
                "step_seconds": own, "sequences_per_second": 8 / own, "data_wait_seconds": own / 10,
                "elements_reduced": 1000 * stage.trainable_layers, "memory": 10**8,
                "memory_peak": 10**8 + step, "cuda_memory_peak": None, "learning_rate": 1e-3,
                "grad_norm": 1.5, "loss_scale": 1.0,
            }  # fmt: skip
            line["loss"] = line["mlm_loss"] + line["nsp_loss"]
            if trust:
                line["trust_ratio"] = {
                    f"layer_{layer}": {"min": 0.1, "median": 0.2 + layer, "max": 9.0}
                    for layer in range(stage.frozen_layers, stage.depth)
                }
            lines.append(line)
        now += 1.5
        end = {"event": "stage_end", "step": stage.end_step - 1, "time": now} | described
        end |= {
            "median_step_seconds": own,
            "eval_mlm_loss": 6 - stage.index / 7,
            "eval_nsp_loss": 0.61,
        }
        lines.append(end)
    lines.append(
        {"event": "run_end", "step": recipe.plan.total_steps, "time": now + 0.5, "model": str(folder / "model"),
         "unigram_entropy": ENTROPY}
    )  # fmt: skip
    if steps is not None:
        lines = [line for line in lines if line["step"] < steps]
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "recipe.yaml").write_text(recipe.config.to_yaml())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def results(model: Path | str, tasks: dict[str, dict[str, dict[str, float]]]) -> dict:
    """An evaluation's results.json. tasks: task -> column -> metric -> score, the main metric first."""
    return {
        "model": str(model), "quick": False, "protocol": "the paper's",
        "tasks": {
            task: {
                "runs": 20,
                "columns": {
                    column: {"metric": next(iter(scores))}
                    | {metric: {"median": value, "spread": 0.01} for metric, value in scores.items()}
                    for column, scores in columns.items()
                },
            }
            for task, columns in tasks.items()
        },
    }  # fmt: skip
