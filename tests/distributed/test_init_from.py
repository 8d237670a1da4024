"""Runs that begin with a model that exists, on two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForPreTraining,
    BertConfig,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
)

from mslt_ds.data.store import TokenStore
from tests.distributed.conftest import REPOSITORY
from tests.distributed.recipes import (
    SCRIPTS,
    moved_in,
    recipe,
    weights_at,
    write_recipes,
    zero_config,
)
from tests.unit.hub import serve

OTHER = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghij",
    *(f"##{c}" for c in "abcdefghij"),
]
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
    other = BertForPreTraining(BertConfig.from_dict(config.to_dict() | {"vocab_size": len(OTHER)}))
    other.save_pretrained(folder / "other")
    BertTokenizer(vocab={word: i for i, word in enumerate(OTHER)}).save_pretrained(folder / "other")
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


def with_new_vocabulary(store: Path, runs: Path, folder: Path) -> dict:
    """Embeddings and heads alone at ZeRO 2 in bf16, then everything: 3 and 2 steps, a checkpoint after 2."""
    plan = {"method": "full", "num_stages": None, "steps_per_stage": None, "joint_steps": None}
    plan |= {"total_steps": 2, "init_from": str(folder), "new_vocabulary": {"steps": 3}}
    return recipe(
        store, runs, "vocabulary", plan=plan, model={"num_hidden_layers": 2},
        train={"precision": "bf16"}, deepspeed=zero_config(runs, 2), checkpoint={"every_steps": 2, "keep": 5},
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(module_launch, store, given, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs")
    recipes = [grown(store, folder, given / name) for name in ("whole", "headless")]
    recipes.append(with_new_vocabulary(store, folder, given / "other"))
    apart = {"freeze": "none", "freeze_embeddings": True, "init_from": str(given / "whole")}
    recipes.append(recipe(store, folder, "apart", plan=PLAN | apart))
    cleared = dict.fromkeys(PLAN, None)
    stages = [{"depth": 2, "trainable_layers": 1, "steps": 2}, {"depth": 2, "steps": 1}]
    top = {"method": "custom", "freeze": "top", "stages": stages, "init_from": str(given / "whole")}
    recipes.append(recipe(store, folder, "top", plan=cleared | top, model={"num_hidden_layers": 2}))
    full = {"method": "full", "num_stages": None, "steps_per_stage": None, "joint_steps": None}
    of_the_hub = full | {"total_steps": 4, "init_from": "someone/tiny"}
    recipes.append(recipe(store, folder, "hub", plan=of_the_hub, model={"num_hidden_layers": 2}))
    with serve() as hub:
        hub.repository = "someone/tiny"
        hub.revisions = {
            "main": {path.name: path.read_bytes() for path in (given / "whole").iterdir()}
        }
        launched = module_launch(
            SCRIPTS / "run_recipes.py", 2, write_recipes(folder / "recipes.json", recipes),
            env={"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0",
                 "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"},
        )  # fmt: skip
    return folder, launched.output


def test_a_whole_model_is_what_stage_1_begins_with_and_it_grows(runs, given):
    run = runs[0] / "whole"
    before, start = weights_at(given, "whole"), weights_at(run, "stages/1/start")
    assert start.keys() == before.keys()
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items())
    stages = json.loads((run / "plan.json").read_text())["stages"]
    assert [stage["init"] for stage in stages] == ["pretrained", "copy_top", "keep"]
    assert weights_at(run, "model").keys() > before.keys()


def test_layers_on_top_freeze(runs):
    """The gradient passes them: what lies below trains, they don't move by a bit."""
    run = runs[0] / "top"
    start = weights_at(run, "stages/1/start")
    top = {name for name in start if name.startswith("bert.encoder.layer.1.")}
    assert top
    assert moved_in(run, 1) == start.keys() - top
    assert moved_in(run, 2) == start.keys()


def test_a_model_of_the_hub_is_what_stage_1_begins_with(runs, given):
    before, start = weights_at(given, "whole"), weights_at(runs[0] / "hub", "stages/1/start")
    assert start.keys() == before.keys()
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items())


def test_missing_heads_begin_fresh_and_are_named_once(runs, given):
    folder, output = runs
    start, before = weights_at(folder / "headless", "stages/1/start"), weights_at(given, "headless")
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items())
    assert {name.split(".")[0] for name in start.keys() - before.keys()} == {"cls", "bert"}
    assert output.count("bert.pooler.dense.weight") == 1


def test_embeddings_and_heads_learn_a_new_vocabulary_under_a_frozen_body(runs, store):
    folder, output = runs
    run = folder / "vocabulary"
    size = TokenStore.open(store).vocab_size
    assert f"plan.new_vocabulary: of {size} tokens, " in output
    start = weights_at(run, "stages/1/start")
    words = start["bert.embeddings.word_embeddings.weight"]
    assert words.shape == (size, 32)
    body = {name for name in start if name.startswith("bert.encoder.")}
    assert moved_in(run, 1) == start.keys() - body
    assert moved_in(run, 2) == start.keys()
    model = AutoModelForPreTraining.from_pretrained(run / "model")
    assert model.config.vocab_size == size


def test_nothing_but_the_embeddings_is_frozen_where_the_recipe_says_so(runs):
    run = runs[0] / "apart"
    for stage in (1, 2, 3):
        names = weights_at(run, f"stages/{stage}/end").keys()
        frozen = {name for name in names if name.startswith("bert.embeddings.")}
        assert len(frozen) == 5
        assert moved_in(run, stage) == names - frozen


def test_a_run_that_goes_on_does_not_need_the_folder(launch, runs, store, given, tmp_path):
    for name in ("whole", "vocabulary"):
        shutil.copytree(runs[0] / name, tmp_path / name)
    shutil.rmtree(tmp_path / "whole/checkpoints/step_0000000008")
    for step in (3, 4, 5):  # that of step 2 is inside the first stage
        shutil.rmtree(tmp_path / f"vocabulary/checkpoints/step_{step:010}")
    shutil.copytree(given, tmp_path / "elsewhere")
    contents = [
        make(store, tmp_path, tmp_path / "elsewhere" / name)
        for make, name in ((grown, "whole"), (with_new_vocabulary, "other"))
    ]
    shutil.rmtree(tmp_path / "elsewhere")
    ended = launch(SCRIPTS / "run_recipes.py", 2, write_recipes(tmp_path / "r.json", contents))
    assert "steps 6 to 8" in ended.output
    for run in ("whole", "vocabulary"):
        expected, found = weights_at(runs[0] / run, "model"), weights_at(tmp_path / run, "model")
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
