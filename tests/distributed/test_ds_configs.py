"""Every file of ds_configs/ under real engines, for a whole run of several stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.conftest import REPOSITORY
from tests.distributed.recipes import SCRIPTS, metrics_of, recipe, weights_at, write_recipes

FILES = sorted((REPOSITORY / "ds_configs").glob("*.json"))
ON_CPU = [path for path in FILES if not path.stem.endswith("fp16")]
ON_GPU = [path for path in FILES if path.stem.endswith("fp16")]


def short(store: Path, folder: Path, path: Path, device: str) -> dict:
    """A run of 2 + 2 + 2 steps with one of the files."""
    return recipe(
        store,
        folder,
        path.stem,
        plan={"steps_per_stage": 2, "joint_steps": 2},
        train={"precision": path.stem.split("_")[1], "device": device},
        deepspeed={"config": str(path)},
    )


@pytest.fixture(scope="module")
def runs(module_launch, store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    recipes = [short(store, folder, path, "cpu") for path in ON_CPU]
    module_launch(SCRIPTS / "run_recipes.py", 2, write_recipes(folder / "recipes.json", recipes))
    return folder


@pytest.mark.parametrize("path", ON_CPU, ids=lambda path: path.stem)
def test_a_run_on_two_ranks(runs: Path, path: Path) -> None:
    lines = metrics_of(runs / path.stem)
    assert [line["step"] for line in lines] == list(range(6))
    # What each ZeRO stage is for: 0 keeps everything everywhere, 1 and 2 gather what they cut.
    assert {line["elements_gathered"] > 0 for line in lines} == {"zero0" not in path.stem}
    assert weights_at(runs / path.stem, "model")


@pytest.mark.gpu
@pytest.mark.parametrize("path", ON_GPU, ids=lambda path: path.stem)
def test_a_run_in_fp16(launch, store: Path, tmp_path: Path, path: Path) -> None:
    recipe_path = tmp_path / "recipe.yaml"
    recipe_path.write_text(json.dumps(short(store, tmp_path, path, "cuda")))
    train = REPOSITORY / "mslt_ds/train.py"
    launch(train, 1, "--config", str(recipe_path), env={"DS_ACCELERATOR": "cuda"})
    assert [line["step"] for line in metrics_of(tmp_path / path.stem)] == list(range(6))
