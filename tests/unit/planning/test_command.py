"""`mslt-ds plan` with hardware: what it tells, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mslt_ds.cli import main

BASE = str(Path(__file__).parents[3] / "configs" / "bert_base_mslt.yaml")
TIMED = ("flops", "seconds_per_step", "hours", "gpu_hours", "memory_per_gpu_bytes")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def plan(capsys, *options: str) -> dict:
    assert main(["plan", "--config", BASE, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_hours_in_json(capsys):
    options = ("--gpus", "32", "--gpu", "v100", "--network", "100gbit")
    told = plan(capsys, *options)
    assert told["world_size"] == 32
    for figures in (told, *told["stages"], *told["twins"].values()):
        assert all(figures[key] > 0 for key in TIMED) and "cost" not in figures
    assert set(told["twins"]) == {"full", "stacking"}
    parts = told["stages"][0]["parts"]
    assert sum(parts.values()) == told["stages"][0]["seconds_per_step"]
    slower = plan(capsys, *options[:-1], "25gbit", "--price", "2")
    assert slower["hours"] > told["hours"] and slower["cost"] == 2 * slower["gpu_hours"]
    without = plan(capsys)
    assert "hours" not in without and without["stages"][0]["flops_per_step"] > 0


def test_hours_that_are_given(capsys):
    told = plan(capsys, "--gpus", "8", "--gpu", "h100", "--hours", "2")
    assert 1.99 < told["hours"] <= 2
    options = [option for override in told["fitted"]["set"] for option in ("--set", override)]
    assert plan(capsys, "--gpus", "8", "--gpu", "h100", *options)["hours"] == told["hours"]
    longer = ("--set", "plan.long_sequence={share: 0.1}")
    for hours in ("0.5", "0.7", "20"):
        told = plan(capsys, "--gpus", "8", "--gpu", "h100", "--hours", hours, *longer)
        assert 0.99 * float(hours) < told["hours"] <= float(hours)


def test_table(capsys):
    options = ["--gpus", "32", "--gpu", "v100", "--network", "60gbit", "--price", "2.5"]
    assert main(["plan", "--config", BASE, *options]) == 0
    out = capsys.readouterr().out
    rows = {line.split("  ")[0].strip(): line.split() for line in out.splitlines()}
    assert rows["full"][-2:] == ["0.44", "0.44"] and rows["stacking"][-1] == "0.54"
    assert "stage 5" in rows and "this plan" in rows
    assert "35% of 125 TFLOP/s" in out and "don't fit" not in out
    huge = ["--set", "train.micro_batch_size=1024", "--gpus", "1", "--gpu", "t4"]
    assert main(["plan", "--config", BASE, *huge]) == 0
    assert "The tensors don't fit a GPU of 16 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "32", "--gpu", "v100"], "--network: missing; 32 GPUs are 4 nodes of 8"),
        (["--gpus", "8"], "--gpus: 8 without --gpu"),
        (["--network", "25gbit"], "--network: 25gbit, but without --gpu"),
        (["--gpu", "v100", "--calibrate"], "--gpu: v100, but --calibrate measures this machine"),
        (["--hours", "3"], "--hours: 3.0 needs --gpus with --gpu, or --calibrate"),
        (["--price", "3"], "--price: 3.0 needs --gpus"),
        (["--gpus", "8", "--gpu", "a100", "--hours", "-1"], "--hours: -1.0; it has to be"),
        (["--gpus", "8", "--gpu", "a100", "--price", "nan"], "--price: nan; it has to be"),
        (["--gpus", "x", "--gpu", "a100"], "--gpus: x; it has to be a whole number"),
        (["--gpus", "8", "--world-size", "4"], "--gpus: 8 beside --world-size 4"),
        (["--gpus", "3", "--gpu", "a100"], "train.global_batch_size: 1024 is not a multiple"),
        (["--calibrate", "2"], "--calibrate: 2; measure 4 steps or more"),
        (["--gpus", "8", "--gpu", "a100", "--hours", "1e-9"], "--hours: too few"),
    ],
)
def test_mistakes(capsys, options, message):
    assert main(["plan", "--config", BASE, *options]) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_bf16_needs_a_gpu_that_has_it(capsys):
    options = ["--gpus", "8", "--gpu", "v100", "--set", "train.precision=bf16"]
    assert main(["plan", "--config", BASE, *options]) == 2
    assert "error: train.precision: bf16, but a v100 has no bf16" in capsys.readouterr().err
