"""Every file in ds_configs/ fits the recipes and is understood by the installed DeepSpeed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mslt_ds.recipe import deepspeed_json
from mslt_ds.recipe.loading import load_recipe

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "ds_configs").glob("*.json"))


def test_one_file_for_each_stage_and_precision() -> None:
    names = {f"zero{stage}_{p}.json" for stage in (0, 1, 2) for p in ("fp32", "bf16", "fp16")}
    assert {path.name for path in FILES} == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_fits_a_recipe_of_its_precision_and_no_other(path: Path) -> None:
    stage, precision = path.stem.split("_")
    path_of_recipe = str(ROOT / "configs" / "bert_base_mslt.yaml")
    loaded = load_recipe(
        path_of_recipe,
        [f"train.precision={precision}", f"deepspeed.config={path}", "optimizer.name=adamw"],
    )
    loaded.check_world(32)
    assert deepspeed_json.zero_stage(deepspeed_json.read(str(path))) == int(
        stage.removeprefix("zero")
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_deepspeed_knows_every_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR", "cpu"))
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    settings = json.loads(path.read_text())
    assert set(settings["zero_optimization"]) <= set(DeepSpeedZeroConfig.model_fields)
    if "fp16" in settings:
        assert set(settings["fp16"]) <= set(DeepSpeedFP16Config.model_fields)
    numbers = {"train_micro_batch_size_per_gpu": 32, "gradient_accumulation_steps": 1}
    settings = {key: value for key, value in settings.items() if value != "auto"}
    read = DeepSpeedConfig(settings | numbers)
    assert read.zero_optimization_stage == int(path.stem[4])
    assert read.float16_config.enabled == path.stem.endswith("fp16")
    assert read.bfloat16_config.enabled == path.stem.endswith("bf16")
    assert read.zero_allow_untested_optimizer
    assert not read.zero_force_ds_cpu_optimizer
