"""Rank 0 writes to every sink that the recipe asks for; other ranks do nothing with the same calls."""

from __future__ import annotations

import json
import sys
import time

import pytest

from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import EnvironmentProblem
from mslt_ds.plan.methods import build_plan
from mslt_ds.recipe.loading import parse_recipe
from mslt_ds.telemetry import METRICS_FILE, Telemetry

STEP = {
    "stage": 1,
    "loss": 7.0,
    "learning_rate": 1e-3,
    "sequences_per_second": 100.0,
    "step_seconds": 0.1,
}


def recipe(**telemetry) -> RunConfig:
    return parse_recipe(
        {
            "name": "tiny",
            "model": {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4},
            "plan": {"method": "mslt", "num_stages": 2, "steps_per_stage": 10, "joint_steps": 5},
            "data": {"path": "somewhere"},
            "train": {"global_batch_size": 8, "micro_batch_size": 4},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
            "telemetry": telemetry,
        }
    ).config


def opened(config: RunConfig, run_dir, rank: int = 0, resume_step: int = 0) -> Telemetry:
    return Telemetry.open(config, run_dir, build_plan(config), rank, resume_step)


def lines(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]


def test_steps_and_events_share_one_file(tmp_path):
    run_dir = tmp_path
    before = time.time()
    with opened(recipe(), run_dir) as telemetry:
        telemetry.event("stage_start", {"stage": 1, "step": 0})
        telemetry.log(9, STEP)
        telemetry.event("checkpoint", {})
    start, step, checkpoint = lines(run_dir)
    assert (start["event"], start["step"], start["stage"]) == ("stage_start", 0, 1)
    assert "event" not in step
    assert step["step"] == 9
    assert {key: step[key] for key in STEP} == STEP
    assert (checkpoint["event"], checkpoint["step"]) == ("checkpoint", 9)
    assert before <= start["time"] <= step["time"] <= checkpoint["time"] <= time.time()


def test_event_before_any_step_belongs_to_the_step_to_come(tmp_path):
    with opened(recipe(), tmp_path, resume_step=7) as telemetry:
        telemetry.event("resumed", {})
    assert lines(tmp_path)[0]["step"] == 7


def test_resume_drops_the_steps_to_be_repeated(tmp_path):
    for resume_step, steps in ((0, range(6)), (4, range(4, 8))):
        with opened(recipe(), tmp_path, resume_step=resume_step) as telemetry:
            for step in steps:
                telemetry.log(step, STEP | {"resumed_at": resume_step})
    assert [(line["step"], line["resumed_at"]) for line in lines(tmp_path)] == [
        *((step, 0) for step in range(4)),
        *((step, 4) for step in range(4, 8)),
    ]


def test_other_ranks_write_nothing(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    with opened(recipe(tensorboard=True), tmp_path / "run", rank=1) as telemetry:
        telemetry.event("stage_start", {"stage": 1, "step": 0})
        telemetry.log(0, STEP)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_all_sinks_at_once(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    with opened(recipe(tensorboard=True, wandb={"enabled": True}), tmp_path) as telemetry:
        telemetry.log(0, STEP)
    assert len(lines(tmp_path)) == 1
    assert list(tmp_path.glob("tensorboard/events.*"))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert "stage 1/3  step 1/25  loss 7.000" in capsys.readouterr().out


def test_what_the_recipe_leaves_out_is_not_imported(tmp_path, monkeypatch):
    for package in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)  # an import would raise
    with opened(recipe(), tmp_path) as telemetry:
        telemetry.log(0, STEP)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("asked", [{"wandb": {"enabled": True}}, {"tensorboard": True}])
def test_missing_package_fails_on_every_rank(tmp_path, monkeypatch, rank, asked):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem):
        opened(recipe(**asked), tmp_path, rank=rank)


def test_a_sink_that_fails_is_told_once_and_holds_up_nothing(caplog):
    closed, written = [], []

    class Good:
        def write(self, line) -> None:
            written.append(line["step"])

        def close(self) -> None:
            closed.append(self)

    class Bad(Good):
        def write(self, line) -> None:
            raise OSError("no space left on device")

        def close(self) -> None:
            raise OSError("no space left on device")

    telemetry = Telemetry((Good(), Bad(), Good()), 0)
    for step in range(3):
        telemetry.log(step, {})
    telemetry.close()
    assert written == [0, 0, 1, 1, 2, 2] and len(closed) == 2
    assert caplog.text.count("Bad can't be written (no space left on device)") == 1
