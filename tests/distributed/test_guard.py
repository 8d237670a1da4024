"""Numbers that aren't finite: no step applies them, no file holds them, and the run tells about them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mslt_ds.distributed.signals import EXIT_CODE_STOPPED
from tests.distributed.recipes import SCRIPTS, recipe, weights_at, zero_config

BATCH = 12
# (optimizer, precision, ZeRO stage, clipping): each with each other, and with each kind of fault
ENGINES = [
    ("adamw", "fp32", 0, 0.0), ("lamb", "fp32", 0, 1.0), ("adamw", "fp32", 1, 1.0), ("lamb", "fp32", 2, 0.0),
    ("adamw", "bf16", 0, 1.0), ("lamb", "bf16", 1, 0.0), ("adamw", "bf16", 2, 1.0),
]  # fmt: skip
FULL = {"method": "full", "num_stages": None, "steps_per_stage": None, "joint_steps": None}


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == name]


def all_tensors(run_dir: Path) -> dict[Path, dict[str, torch.Tensor]]:
    return {path: load_file(path) for path in run_dir.rglob("*.safetensors")}


def assert_every_file_is_finite(run_dir: Path) -> None:
    files = all_tensors(run_dir)
    assert files
    for path, tensors in files.items():
        for name, tensor in tensors.items():
            assert tensor.isfinite().all(), (path, name)


@pytest.fixture(scope="module")
def runs(module_launch, store, tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """All cases in one launch of two ranks: the folder, and the exit code of each."""
    folder = tmp_path_factory.mktemp("runs")
    cases = []

    def add(
        name: str, kind: str, steps: list[int], stop: Any = "", other: Any = None, **changes: Any
    ) -> None:
        changes = {"schedule": {"name": "constant", "warmup_steps": 0}} | changes
        made = recipe(store, folder, name, **changes)
        starts = [BATCH * step for step in steps]
        cases.append({"recipe": made, "kind": kind, "starts": starts, "stop": stop,
                      "other": other or {}})  # fmt: skip

    for engine in ENGINES:
        optimizer, precision, zero, clipping = engine
        shared = {
            "optimizer": {"name": optimizer, "learning_rate": 1e-3},
            "deepspeed": zero_config(folder, zero),
            "train": {"precision": precision, "gradient_clipping": clipping},
        }
        name = "-".join(map(str, engine))
        add(f"{name}-short", "none", [], plan=FULL | {"total_steps": 3}, **shared)
        for kind in ("loss", "gradient"):
            add(f"{name}-{kind}", kind, [3], plan=FULL | {"total_steps": 4}, **shared)
    # Two bad batches in a row, in the second of three stages: the batches of steps 7 and 8.
    patience = {"max_skipped_steps": 2, "max_rollbacks": 1}
    sparse = {"checkpoint": {"every_steps": 3}, "telemetry": {"log_every_steps": 5}}
    add("passes-over", "loss", [7, 8], train=patience, **sparse)
    add("gives-up", "gradient", [], train=patience, **sparse)
    add("late", "loss", list(range(7, 40)), train=patience, **sparse)
    add("rate", "none", [], train=patience, optimizer={"learning_rate": 1e38}, **sparse)
    # The only step of a stage, at which a checkpoint is due too, makes the weights infinite.
    add("at-the-end", "none", [], plan=FULL | {"total_steps": 1}, train=patience,
        optimizer={"learning_rate": 1e39}, checkpoint={"every_steps": 1})  # fmt: skip
    # Told to stop in the second of the bad steps; then in each evaluation; started again after each.
    add("stopped", "loss", [7, 8], stop=BATCH * 8, train=patience, **sparse)
    add("stopped", "loss", [7, 8], train=patience, **sparse)
    held_out = sparse | {"data": {"eval_path": str(store)}, "evaluation": {"instances": 24}}
    add("evaluated", "none", [], **held_out)
    for stop in ("evaluation", "evaluation", ""):
        add("stopped-in-evaluation", "none", [], stop=stop, **held_out)
    # Goes on with other micro-batches, without dropout.
    smooth: dict[str, Any] = {
        "model": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    }
    add("even", "none", [], **smooth)
    add("uneven", "none", [], stop=BATCH * 7, **smooth)
    add("uneven", "none", [], train={"micro_batch_size": 6}, **smooth)
    add(
        "disagree",
        "none",
        [],
        other={"train": {"micro_batch_size": 6}, "checkpoint": {"every_steps": 3}},
    )
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    output = module_launch(SCRIPTS / "plant_faults.py", 2, str(path), timeout=900).output
    (folder / "output.txt").write_text(output)
    codes: dict[str, int] = {}
    for name, code in re.findall(r"ENDED (\S+) (\d+)", output):
        codes[name] = max(codes.get(name, 0), int(code))
    return folder, codes


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: "-".join(map(str, engine)))
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_step_changes_no_bit(runs, engine, kind):
    folder, codes = runs
    name = "-".join(map(str, engine))
    assert codes[f"{name}-{kind}"] == codes[f"{name}-short"] == 0
    (skipped,) = events(folder / f"{name}-{kind}", "step_skipped")
    assert skipped["step"] == 3 and skipped["instances"] == [3 * BATCH, 4 * BATCH]
    assert ("the loss is" in skipped["reason"]) == (kind == "loss")
    bad, good = (weights_at(folder / f"{name}-{case}", "model") for case in (kind, "short"))
    assert good.keys() == bad.keys()
    for parameter, tensor in good.items():
        assert torch.equal(bad[parameter], tensor), parameter
    (checkpoint,) = (folder / f"{name}-{kind}" / "checkpoints").iterdir()
    (expected,) = (folder / f"{name}-short" / "checkpoints").iterdir()
    moments, good_moments = (load_file(p / "optimizer.safetensors") for p in (checkpoint, expected))
    for parameter, tensor in good_moments.items():
        assert torch.equal(moments[parameter], tensor), parameter
    steps, good_steps = (
        json.loads((p / "state.json").read_text())["optimizer_steps"]
        for p in (checkpoint, expected)
    )
    assert steps == good_steps


def test_the_run_goes_back_and_passes_over_the_batches(runs):
    folder, codes = runs
    assert codes["passes-over"] == 0
    run = folder / "passes-over"
    assert [event["step"] for event in events(run, "step_skipped")] == [7, 8]
    (back,) = events(run, "rolled_back")
    assert (back["step"], back["to_step"]) == (8, 6)
    assert back["instances"] == [7 * BATCH, 9 * BATCH]
    newest = sorted((run / "checkpoints").iterdir())[-1]
    state = json.loads((newest / "state.json").read_text())
    assert state["step"] == 14
    assert state["passed_over"] == {"32": [[7 * BATCH, 9 * BATCH]]}
    assert_every_file_is_finite(run)


@pytest.mark.parametrize("name", ["gives-up", "late", "rate", "at-the-end"])
def test_a_run_that_can_not_be_mended_stops_and_keeps_sound_files(runs, name):
    folder, codes = runs
    assert codes[name] == 4
    assert len(events(folder / name, "rolled_back")) == 1
    assert not (folder / name / "model").exists()
    assert_every_file_is_finite(folder / name)


def test_the_message_names_the_instances(runs):
    folder, _ = runs
    lines = [line for line in (folder / "output.txt").read_text().splitlines() if "error" in line]
    assert any("train.max_rollbacks: 1" in line for line in lines)
    assert any(f"step 1, instances 0 to {2 * BATCH - 1}" in line for line in lines)


def test_a_stop_saves_no_state_from_which_the_run_went_back(runs):
    folder, codes = runs
    assert codes["stopped"] == EXIT_CODE_STOPPED
    # Of the first start: the event stays, since a run that went back doesn't meet the step again.
    run, expected = folder / "stopped", folder / "passes-over"
    assert [event["step"] for event in events(run, "step_skipped")] == [7, 8]
    assert_same_state(run, expected)


def test_a_stop_in_an_evaluation_saves_the_steps_and_repeats_the_evaluation(runs):
    folder, codes = runs
    assert codes["stopped-in-evaluation"] == EXIT_CODE_STOPPED
    run, expected = folder / "stopped-in-evaluation", folder / "evaluated"
    ends, expected_ends = (
        [{**event, "time": 0, "median_step_seconds": 0} for event in events(path, "stage_end")]
        for path in (run, expected)
    )
    assert ends == expected_ends
    assert_same_state(run, expected)


def test_another_micro_batch_after_a_stop_changes_only_rounding(runs):
    folder, codes = runs
    assert codes["even"] == 0 and codes["uneven"] == EXIT_CODE_STOPPED
    even, uneven = (weights_at(folder / name, "model") for name in ("even", "uneven"))
    for parameter, tensor in even.items():
        torch.testing.assert_close(uneven[parameter], tensor, rtol=0, atol=5e-5)


def test_ranks_that_disagree_are_named_with_what_they_disagree_on(runs):
    folder, codes = runs
    assert codes["disagree"] == 3
    assert not (folder / "disagree").exists()
    output = (folder / "output.txt").read_text()
    assert "checkpoint.every_steps: 1000 on rank 0, 3 on ranks [1]" in output
    assert "train.micro_batch_size: 3 on rank 0, 6 on ranks [1]" in output


def assert_same_state(run: Path, expected: Path) -> None:
    found = {path.relative_to(run): tensors for path, tensors in all_tensors(run).items()}
    for path, tensors in all_tensors(expected).items():
        for name, tensor in tensors.items():
            assert torch.equal(found[path.relative_to(expected)][name], tensor), (path, name)
