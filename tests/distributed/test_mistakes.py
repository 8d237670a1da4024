"""A user's mistake, under a launcher: one readable message, exit code 2, no traceback, no work."""

from __future__ import annotations

import json

import pytest

from mslt_ds.disk.lock import RunLock
from tests.distributed.conftest import REPOSITORY
from tests.distributed.recipes import recipe

TRAIN = REPOSITORY / "mslt_ds/train.py"


def attempt(launch, tmp_path, content: dict, *options: str, ranks: int = 2):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    return launch(TRAIN, ranks, "--config", str(path), *options, check=False)


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({"trian": {}}, (), "trian"),
        ({}, ("--set", "train.precision=fp16"), "train.precision: fp16"),
        ({}, ("--set", "train.global_batch_size=9"), "train.global_batch_size: 9"),
        ({"data": {"path": "nowhere/at/all"}}, (), "nowhere/at/all"),
    ],
)
def test_a_mistake_in_the_recipe(launch, store, tmp_path, changes, options, named):
    content = recipe(store, tmp_path / "runs", "wrong", **changes)
    ended = attempt(launch, tmp_path, content, *options)
    assert ended.returncode == 2, ended.output
    assert "error" in ended.output and named in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "runs").exists()


def test_a_second_start_of_a_run_that_is_alive(launch, store, tmp_path):
    content = recipe(store, tmp_path / "runs", "one")
    with RunLock.held(tmp_path / "runs" / "one", {}):
        ended = attempt(launch, tmp_path, content)
    assert ended.returncode == 6, ended.output
    (line,) = [line for line in ended.output.splitlines() if "error" in line]
    assert "runs/one: this run is alive (process" in line
    assert "Traceback" not in ended.output
    assert not (tmp_path / "runs" / "one").exists()


def test_another_recipe_for_the_same_run_folder(launch, store, tmp_path):
    content = recipe(store, tmp_path / "runs", "one", plan={"steps_per_stage": 2, "joint_steps": 1})
    assert attempt(launch, tmp_path, content, ranks=1).returncode == 0
    before = sorted((tmp_path / "runs").rglob("*"))
    ended = attempt(launch, tmp_path, content, "--set", "optimizer.learning_rate=3e-3", ranks=1)
    assert ended.returncode == 2
    assert "optimizer.learning_rate: 0.003 now, 0.01 in the checkpoint" in ended.output
    assert sorted((tmp_path / "runs").rglob("*")) == before
    # The very same command, though, finds the run finished and ends well.
    assert attempt(launch, tmp_path, content, ranks=1).returncode == 0
