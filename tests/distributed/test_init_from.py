"""A run that begins with another's model, on two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mslt_ds.weights import TOKENIZER_FILES
from tests.distributed.conftest import REPOSITORY
from tests.distributed.recipes import metrics_of, recipe, store, weights_at

__all__ = ["store"]

TRAIN = REPOSITORY / "mslt_ds/train.py"
FULL = {
    "method": "full", "num_stages": None, "steps_per_stage": None, "total_steps": 3,
    "joint_steps": None,
}  # fmt: skip
PLAN = {"num_stages": 2, "steps_per_stage": 3, "joint_steps": 2}


@pytest.fixture(scope="module")
def shallow(module_launch, store, tmp_path_factory) -> Path:
    """A trained model of as many layers as the first of two stages has."""
    folder = tmp_path_factory.mktemp("shallow")
    content = recipe(store, folder, "two", plan=FULL,
                     model={"num_hidden_layers": 2}, schedule={"warmup_steps": 0})  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(content))
    module_launch(TRAIN, 2, "--config", str(folder / "recipe.yaml"))
    return folder / "two"


def train(launch, tmp_path, content, check=True):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    return launch(TRAIN, 2, "--config", str(path), check=check)


def test_a_shallower_model_is_grown_and_a_resumed_run_needs_its_folder_no_more(
    launch, store, shallow, tmp_path
):
    given = tmp_path / "given"
    shutil.copytree(shallow / "model", given)
    content = recipe(store, tmp_path, "grown", plan=PLAN | {"init_from": str(given)})
    train(launch, tmp_path, content)
    run = tmp_path / "grown"
    before, start = weights_at(shallow, "model"), weights_at(run, "stages/1/start")
    assert start.keys() == before.keys()
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items())
    assert json.loads((run / "plan.json").read_text())["stages"][0]["init"] == "pretrained"
    # It begins where the other stopped, not where a fresh model does.
    first, last = metrics_of(run)[0], metrics_of(shallow)[0]
    assert first["mlm_loss"] < last["mlm_loss"] - 0.05
    finished = weights_at(run, "model")

    shutil.rmtree(given)
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != "step_0000000006":
            shutil.rmtree(checkpoint)
    ended = train(launch, tmp_path, content)
    assert "steps 6 to 8" in ended.output
    again = weights_at(run, "model")
    assert all(torch.equal(again[name], tensor) for name, tensor in finished.items())


def test_a_folder_that_does_not_fit_is_refused_before_any_work(launch, store, shallow, tmp_path):
    content = recipe(
        store, tmp_path / "runs", "wrong", plan=FULL | {"init_from": str(shallow / "model")}
    )
    ended = train(launch, tmp_path, content, check=False)
    assert ended.returncode == 2, ended.output
    assert "num_hidden_layers is 2, and stage 1 of the plan has 4" in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "runs").exists()


def test_a_missing_head_is_said_once(launch, store, shallow, tmp_path):
    from transformers import BertModel

    BertModel.from_pretrained(shallow / "model", add_pooling_layer=False).save_pretrained(
        tmp_path / "encoder"
    )
    for name in TOKENIZER_FILES:
        if (shallow / "model" / name).is_file():
            shutil.copyfile(shallow / "model" / name, tmp_path / "encoder" / name)
    content = recipe(
        store, tmp_path, "headless", plan=PLAN | {"init_from": str(tmp_path / "encoder")}
    )
    ended = train(launch, tmp_path, content)
    assert ended.output.count("bert.pooler.dense.weight") == 1
    start, before = (
        weights_at(tmp_path / "headless", "stages/1/start"),
        weights_at(shallow, "model"),
    )
    name = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(start[name], before[name])
    assert not torch.equal(start["bert.pooler.dense.weight"], before["bert.pooler.dense.weight"])
