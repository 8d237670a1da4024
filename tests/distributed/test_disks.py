"""A run on two ranks whose disk is full: it goes on, and ends only when told how long to bear it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mslt_ds.disk.checkpoint import CheckpointFolder
from tests.distributed.conftest import REPOSITORY
from tests.distributed.recipes import SCRIPTS, metrics_of, recipe, weights_at
from tests.volume import Volume

TRAIN = REPOSITORY / "mslt_ds/train.py"


def fill_after(run_dir: Path, volume: Volume, log: Path | None = None) -> threading.Thread:
    """Fill the volume once two checkpoints are there, and free it once `log` tells of it."""

    def work() -> None:
        deadline = time.monotonic() + 600
        while len(list(run_dir.glob("checkpoints/step_*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        volume.fill()
        if log is not None:
            while "can't be written" not in log.read_text() and time.monotonic() < deadline:
                time.sleep(0.02)
            volume.free()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def start(launch, tmp_path: Path, content: dict):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    return launch(TRAIN, 2, "--config", str(path), check=False)


def test_going_back_waits_for_the_disk(launch, store, tmp_path, volume):
    bad = {"kind": "gradient", "starts": [12 * 20, 12 * 21], "stop": "", "other": {}}
    changes = {
        "train": {"max_skipped_steps": 2},
        "plan": {"steps_per_stage": 12, "joint_steps": 2},
        "checkpoint": {"every_steps": 13},  # nothing is written between it and going back
    }
    folders = {"undisturbed": tmp_path, "disturbed": volume.path}
    recipes = {name: recipe(store, folder, name, **changes) for name, folder in folders.items()}
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps([bad | {"recipe": content} for content in recipes.values()]))
    run_dir, log = volume.path / "disturbed", tmp_path / "launched-0.log"

    def work() -> None:
        deadline = time.monotonic() + 60

        def wait_for(condition: Callable[[], object]) -> None:
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.01)

        wait_for(lambda: list(run_dir.glob("checkpoints/step_*13")))
        volume.detach()
        wait_for(lambda: f"{run_dir} can't be written" in log.read_text())
        volume.attach()

    thread = threading.Thread(target=work)
    thread.start()
    ended = launch(SCRIPTS / "plant_faults.py", 2, str(cases), check=False)
    thread.join()
    assert "ENDED undisturbed 0" in ended.output and "ENDED disturbed 0" in ended.output
    assert f"{run_dir} can't be written" in ended.output
    expected, found = (weights_at(folders[name] / name, "model") for name in folders)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert not list(run_dir.glob(".room"))


LONG = {"plan": {"steps_per_stage": 60, "joint_steps": 60}, "checkpoint": {"every_steps": 4}}


def test_a_full_disk_is_borne_until_there_is_room(launch, store, tmp_path, volume):
    content = recipe(store, volume.path, "bears", **LONG)
    run_dir = volume.path / "bears"
    filling = fill_after(run_dir, volume, log=tmp_path / "launched-0.log")
    ended = start(launch, tmp_path, content)
    filling.join()
    assert ended.returncode == 0, ended.output
    assert "can't be written (No space left on device); the run goes on" in ended.output
    assert "Traceback" not in ended.output
    assert [line["step"] for line in metrics_of(run_dir)] == list(range(180))
    for name in ("stages/1/end", "stages/2/start", "stages/2/end", "stages/3/start", "model"):
        assert (run_dir / name / "manifest.json").is_file(), name
    assert CheckpointFolder(run_dir / "checkpoints", 2).read_newest(str)
    assert (run_dir / "checkpoints" / "step_0000000180").is_dir()


def test_after_give_up_after_it_ends_with_a_line_and_its_code(launch, store, tmp_path, volume):
    changes = LONG | {"checkpoint": {"every_steps": 4, "give_up_after": 1.0}}
    content = recipe(store, volume.path, "gives-up", **changes)
    filling = fill_after(volume.path / "gives-up", volume)
    ended = start(launch, tmp_path, content)
    filling.join()
    assert ended.returncode == 3, ended.output
    lines = [line for line in ended.output.splitlines() if "checkpoint.give_up_after" in line]
    assert lines and "nothing could be written for" in lines[0]
    assert "Traceback" not in ended.output
    volume.free()
    assert len(list((volume.path / "gives-up" / "checkpoints").glob("step_*"))) == 2
