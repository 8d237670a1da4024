"""LAMB from outside: recipes trained by the main job, seen by what a run leaves behind.

Weights at every ZeRO stage and number of ranks; step counts and moments across stages; trust ratios
and learning rates in metrics.jsonl, of runs that were resumed too.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mslt_ds.state import OptimizerState, optimizer_state
from tests.distributed.recipes import (
    LAYERS,
    SCRIPTS,
    merged,
    metrics_of,
    recipe,
    weights_at,
    write_recipes,
)

# Two stages of two layers, 5 steps each, and a joint stage of 4: tests/distributed/recipes.py.
FIRST, SECOND, JOINT = 5, 5, 4
RANKS = {0: 1, 1: 2, 2: 3}
"""ZeRO stage -> processes."""
POLICIES = ("carry", "reset", "copy")


def lamb_recipe(store: Path, folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    base = {
        "optimizer": {"name": "lamb", "learning_rate": 0.05},
        "train": {"micro_batch_size": 2},  # 6 micro-batches, for 1, 2 or 3 ranks
        "checkpoint": {"keep": 100},
    }
    return recipe(store, folder, name, **merged(base, changes))


@pytest.fixture(scope="module")
def runs(module_launch, store, tmp_path_factory) -> Path:
    """The same recipe at each ZeRO stage; on one process also with each policy for the state."""
    folder = tmp_path_factory.mktemp("lamb")
    for zero, ranks in RANKS.items():
        config = folder / f"zero{zero}.json"
        config.write_text(json.dumps({"zero_optimization": {"stage": zero}}))
        changes = {"deepspeed": {"config": str(config)}}
        recipes = [lamb_recipe(store, folder, f"zero-{zero}", **changes)]
        if zero == 1:
            recipes += [
                lamb_recipe(store, folder, policy, **changes, optimizer={"state": policy})
                for policy in POLICIES[1:]
            ]
            recipes.append(
                lamb_recipe(store, folder, "seldom", **changes, telemetry={"log_every_steps": 3})
            )
        path = write_recipes(folder / "recipes.json", recipes)
        module_launch(SCRIPTS / "run_recipes.py", ranks, path)
    (folder / "carry").symlink_to(folder / "zero-1")
    return folder


@pytest.mark.parametrize("zero", [1, 2])
def test_every_zero_stage_ends_in_the_same_weights(runs, zero):
    expected, start = (
        weights_at(runs / "zero-0", "model"),
        weights_at(runs / "zero-0", "stages/1/start"),
    )
    found = weights_at(runs / f"zero-{zero}", "model")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)
    # ... and it has been a way: LAMB has moved them much further than that.
    moved = [(expected[n] - start[n]).abs().max().item() for n in start if start[n].dim() > 1]
    assert min(moved) > 3e-3


def state_after(run_dir: Path, step: int) -> OptimizerState:
    path = run_dir / "checkpoints" / f"step_{step:010d}"
    counts = json.loads((path / "state.json").read_text())["optimizer_steps"]
    tensors = {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}
    return optimizer_state(tensors, counts)


def kind_of(name: str) -> str:
    if not name.startswith("bert.encoder.layer."):
        return "embeddings" if name.startswith("bert.embeddings.") else "heads"
    return "new" if int(name.split(".")[3]) >= LAYERS // 2 else "old"


def counts_after(run_dir: Path, step: int) -> dict[str, set[int]]:
    """The step counts that occur, by kind of parameter."""
    counts: dict[str, set[int]] = {}
    for name, entry in state_after(run_dir, step).items():
        counts.setdefault(kind_of(name), set()).add(entry["step"])
    return counts


# After the second stage and after the joint one: the steps that each kind has made, for bias correction.
COUNTS = {
    "carry": (
        {"heads": {FIRST + SECOND}, "new": {SECOND}, "old": {FIRST}, "embeddings": {FIRST}},
        {"heads": {FIRST + SECOND + JOINT}, "new": {SECOND + JOINT},
         "old": {FIRST + JOINT}, "embeddings": {FIRST + JOINT}},
    ),
    "reset": (
        {"heads": {SECOND}, "new": {SECOND}},
        {kind: {JOINT} for kind in ("heads", "new", "old", "embeddings")},
    ),
    "copy": (
        {"heads": {FIRST + SECOND}, "new": {FIRST + SECOND}, "old": {FIRST}, "embeddings": {FIRST}},
        {"heads": {FIRST + SECOND + JOINT}, "new": {FIRST + SECOND + JOINT},
         "old": {FIRST + JOINT}, "embeddings": {FIRST + JOINT}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_each_parameter_counts_its_own_steps(runs, policy):
    second, joint = COUNTS[policy]
    assert counts_after(runs / policy, FIRST + SECOND) == second
    assert counts_after(runs / policy, FIRST + SECOND + JOINT) == joint


def test_moments_cross_the_boundaries(runs):
    """Frozen in the second stage, the old layers keep theirs, as they were; new ones have the
    moments of the layer that they were grown from only where the recipe says so."""
    first = state_after(runs / "carry", FIRST)
    carried, copied = (state_after(runs / p, FIRST + SECOND) for p in ("carry", "copy"))
    for name, entry in first.items():
        if kind_of(name) in ("old", "embeddings"):
            assert torch.equal(carried[name]["exp_avg_sq"], entry["exp_avg_sq"]), name
    beta2 = 0.999
    for name, entry in copied.items():
        if kind_of(name) == "new":
            layer = int(name.split(".")[3])
            source = name.replace(f"layer.{layer}.", f"layer.{layer - LAYERS // 2}.")
            # What is left of the source's after SECOND steps is a lower bound of it.
            left = beta2**SECOND * first[source]["exp_avg_sq"]
            assert (entry["exp_avg_sq"] >= left * (1 - 1e-5)).all(), name
            assert not (carried[name]["exp_avg_sq"] >= left).all(), name


def test_trust_ratios_are_in_the_metrics(runs):
    for run, every in (("zero-2", 1), ("seldom", 3)):
        lines = metrics_of(runs / run)
        assert {b["step"] - a["step"] for a, b in pairwise(lines)} == {every}
        for line in lines:
            old = {"layer_0", "layer_1", "embeddings"} if line["stage"] != 2 else set()
            new = {"layer_2", "layer_3"} if line["stage"] != 1 else set()
            assert set(line["trust_ratio"]) == {"pooler", "cls"} | old | new
            for layer in line["trust_ratio"].values():
                assert set(layer) == {"min", "median", "max"}
                assert 0 < layer["min"] <= layer["median"] <= layer["max"]
    # A parameter's ratio doesn't depend on how it is cut.
    one, other = (metrics_of(runs / f"zero-{zero}") for zero in (0, 2))
    for left, right in zip(one[:8], other[:8], strict=True):
        for layer, ratios in left["trust_ratio"].items():
            assert right["trust_ratio"][layer] == pytest.approx(ratios, rel=1e-3)


STAGES = [
    {"depth": 2, "steps": FIRST, "learning_rate_factor": 0.5},
    {"depth": LAYERS, "steps": SECOND, "warmup_steps": 4},
    {"depth": LAYERS, "trainable_layers": LAYERS, "steps": JOINT},
]
CUSTOM = {"method": "custom", "num_stages": None, "steps_per_stage": None, "joint_steps": None,
          "stages": STAGES}  # fmt: skip
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "polynomial": {"schedule": {"name": "polynomial", "power": 0.5}},
    "constant": {"schedule": {"name": "constant"}},
    "wsd": {"schedule": {"name": "wsd", "decay_steps": 6}},
    "restart": {"schedule": {"restart": True}},
    "stages": {"plan": CUSTOM},
}


def test_a_resumed_run_is_at_the_same_learning_rate(launch, store, tmp_path):
    """Checkpoints inside the second stage and later ones taken away: the run goes on from there."""
    recipes = [
        lamb_recipe(store, tmp_path, name, **changes, checkpoint={"every_steps": 7})
        for name, changes in SCHEDULES.items()
    ]
    path = write_recipes(tmp_path / "recipes.json", recipes)
    launch(SCRIPTS / "run_recipes.py", 1, path)
    whole = {name: metrics_of(tmp_path / name) for name in SCHEDULES}
    for name in SCHEDULES:
        folder = tmp_path / name / "checkpoints"
        for late in folder.glob("step_*"):
            if int(late.name.removeprefix("step_")) > 7:
                shutil.rmtree(late)
        assert max(path.name for path in folder.iterdir()) == "step_0000000007"
    launch(SCRIPTS / "run_recipes.py", 1, path)
    rates = {}
    for name, before in whole.items():
        after = metrics_of(tmp_path / name)
        rates[name] = [line["learning_rate"] for line in after]
        assert [line["step"] for line in after] == list(range(FIRST + SECOND + JOINT))
        assert rates[name] == [line["learning_rate"] for line in before]
        assert [line["loss"] for line in after] == [line["loss"] for line in before]
    assert len({tuple(curve) for curve in rates.values()}) == len(SCHEDULES)
