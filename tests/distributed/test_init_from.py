"""Runs that begin with a model that exists, on two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForPreTraining, BertModel

from mslt_ds.data.store import TokenStore
from tests.distributed.conftest import REPOSITORY
from tests.distributed.recipes import SCRIPTS, recipe, weights_at, write_recipes

PLAN = {"num_stages": 2, "steps_per_stage": 3, "joint_steps": 2}


@pytest.fixture(scope="module")
def given(store: Path, tmp_path_factory) -> Path:
    """Of as many layers as the first of two stages has: a whole model and an encoder without heads."""
    folder = tmp_path_factory.mktemp("given")
    opened = TokenStore.open(store)
    config = BertConfig(
        vocab_size=opened.vocab_size, num_hidden_layers=2, hidden_size=32, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    for name, model in (
        ("whole", BertForPreTraining(config)),
        ("headless", BertModel(config, add_pooling_layer=False)),
    ):
        model.save_pretrained(folder / name)
        shutil.copytree(opened.tokenizer_dir, folder / name, dirs_exist_ok=True)
    return folder


def grown(store: Path, runs: Path, folder: Path) -> dict:
    """Two layers that exist, two on top, then all of them; a checkpoint at each boundary."""
    return recipe(store, runs, folder.name, plan=PLAN | {"init_from": str(folder)})


@pytest.fixture(scope="module")
def runs(module_launch, store, given, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs")
    recipes = [grown(store, folder, given / name) for name in ("whole", "headless")]
    launched = module_launch(
        SCRIPTS / "run_recipes.py", 2, write_recipes(folder / "recipes.json", recipes)
    )
    return folder, launched.output


def test_a_whole_model_is_what_stage_1_begins_with_and_it_grows(runs, given):
    run = runs[0] / "whole"
    before, start = weights_at(given, "whole"), weights_at(run, "stages/1/start")
    assert start.keys() == before.keys()
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items())
    stages = json.loads((run / "plan.json").read_text())["stages"]
    assert [stage["init"] for stage in stages] == ["pretrained", "copy_top", "keep"]
    assert weights_at(run, "model").keys() > before.keys()


def test_missing_heads_begin_fresh_and_are_named_once(runs, given):
    folder, output = runs
    start, before = weights_at(folder / "headless", "stages/1/start"), weights_at(given, "headless")
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items())
    assert {name.split(".")[0] for name in start.keys() - before.keys()} == {"cls", "bert"}
    assert output.count("bert.pooler.dense.weight") == 1


def test_a_run_that_goes_on_does_not_need_the_folder(launch, runs, store, given, tmp_path):
    run = tmp_path / "whole"
    shutil.copytree(runs[0] / "whole", run)
    shutil.rmtree(run / "checkpoints/step_0000000008")
    shutil.copytree(given / "whole", tmp_path / "elsewhere" / "whole")
    content = grown(store, tmp_path, tmp_path / "elsewhere" / "whole")
    shutil.rmtree(tmp_path / "elsewhere")
    ended = launch(SCRIPTS / "run_recipes.py", 2, write_recipes(tmp_path / "r.json", [content]))
    assert "steps 6 to 8" in ended.output
    expected, found = weights_at(runs[0] / "whole", "model"), weights_at(run, "model")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_folder_that_does_not_fit_is_refused_before_any_work(launch, store, given, tmp_path):
    content = grown(store, tmp_path / "runs", given / "whole")
    content["plan"] |= {"num_stages": 1, "joint_steps": 0}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    ended = launch(REPOSITORY / "mslt_ds/train.py", 2, "--config", str(path), check=False)
    assert ended.returncode == 2, ended.output
    assert "num_hidden_layers is 2, and stage 1 of the plan has 4" in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "runs").exists()
