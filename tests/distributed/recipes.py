"""A small recipe, shared by the tests that run the main job, and readers of what a run wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mslt_ds.disk.model_folder import load_weights

SCRIPTS = Path(__file__).with_name("scripts")
LAYERS = 4


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with nested `changes`."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return result


def recipe(store: Path, output_dir: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Two stages of two layers and a joint stage, 5 + 5 + 4 steps, dropout on, every step logged."""
    base = {
        "name": name,
        "output_dir": str(output_dir),
        "seed": 7,
        "model": {
            "num_hidden_layers": LAYERS,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        },
        "plan": {"method": "mslt", "num_stages": 2, "steps_per_stage": 5, "joint_steps": 4},
        "data": {"path": str(store), "seq_length": 32, "num_workers": 0},
        "train": {"global_batch_size": 12, "micro_batch_size": 3, "device": "cpu"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "schedule": {"warmup_steps": 3},
        "telemetry": {"log_every_steps": 1},
    }
    return merged(base, changes)


def write_recipes(path: Path, recipes: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(recipes))
    return str(path)


def zero_config(folder: Path, stage: int) -> dict[str, str]:
    """A recipe's `deepspeed` section: a JSON of that ZeRO stage, written into `folder`."""
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    return {"config": str(path)}


def weights_at(run_dir: Path, folder: str) -> dict[str, Tensor]:
    return load_weights(run_dir / folder)


def moved_in(run_dir: Path, stage: int) -> set[str]:
    """The parameters that aren't, bit for bit, what they were when the stage began."""
    start = weights_at(run_dir, f"stages/{stage}/start")
    end = weights_at(run_dir, f"stages/{stage}/end")
    assert start.keys() == end.keys()
    return {name for name in start if not torch.equal(start[name], end[name])}


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of steps, events left out."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "event" not in line]


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of events."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "event" in line]
