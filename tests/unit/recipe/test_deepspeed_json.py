"""One owner for each setting: the DeepSpeed JSON doesn't contradict the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mslt_ds.errors import RecipeError
from mslt_ds.recipe import deepspeed_json
from mslt_ds.recipe.loading import parse_recipe
from tests.fuzzing import anything, damaged

DS_CONFIGS = Path(__file__).parents[3] / "ds_configs"


def parse(tmp_path, settings, **plan):
    path = tmp_path / "ds.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return parse_recipe(
        {
            "name": "run",
            "plan": {"method": "full", "total_steps": 10, **plan},
            "data": {"path": "store"},
            "train": {"global_batch_size": 64, "micro_batch_size": 8, "precision": "bf16"},
            "optimizer": {"learning_rate": 1e-3},
            "deepspeed": {"config": str(path)},
        }
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"},
        {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8, "gradient_clipping": 1},
        {"bf16": {"enabled": True}, "fp16": {"enabled": "auto", "loss_scale_window": 500}},
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}},
        *({"zero_optimization": {"stage": stage}} for stage in (0, 1, 2)),
        {"zero_optimization": {"reduce_bucket_size": 5e8, "overlap_comm": True}, "amp": None},
        {"wall_clock_breakdown": True, "comms_logger": {"enabled": True}},
    ],
)
def test_allowed(tmp_path, settings):
    parse(tmp_path, settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_batch_size": 32}, ["train_batch_size 32", "train.global_batch_size", "64"]),
        ({"train_micro_batch_size_per_gpu": 16}, ["train.micro_batch_size", "8", "auto"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping 0.5", "train.gradient_clipping", "1.0"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled true", "train.precision", "false"]),
        ({"bf16": {"enabled": False}}, ["bf16.enabled false", "train.precision", "true"]),
        ({"optimizer": {"type": "Lamb"}}, ["optimizer", "leave it out"]),
        ({"scheduler": {"type": "OneCycle"}}, ["scheduler", "schedule"]),
        ({"amp": {"enabled": True}}, ["amp", "train.precision"]),
        ({"bf16": True}, ["bf16 true", "object"]),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
            ["zero_optimization.offload_optimizer", "leave it out"],
        ),
        ({"zero_optimization": {"stage": 3}}, ["stage 3", "0, 1 or 2"]),
        ({"zero_optimization": {"stage": "two"}}, ["two", "0, 1 or 2"]),
        ({"zero_optimization": {"stage": True}}, ["true", "0, 1 or 2"]),
        ({"zero_force_ds_cpu_optimizer": True}, ["zero_force_ds_cpu_optimizer", "leave it out"]),
        ({"zero_optimisation": {"stage": 2}}, ["zero_optimisation", "zero_optimization.stage?"]),
        ({"zero_optimization": {"reduce_bucket": 9}}, ["did you mean", "reduce_bucket_size?"]),
        ({"prescale_gradients": True}, ["prescale_gradients: not a setting", "leave it out"]),
        ({"fp16": {"auto_cast": True}}, ["fp16.auto_cast", "not a setting"]),
        ({"zero_optimization": {"overlap_comm": "yes"}}, ['overlap_comm "yes"', "true or false"]),
        ({"zero_optimization": {"reduce_bucket_size": 1.5}}, ["1.5", "a whole number"]),
        ({"fp16": {"hysteresis": -1}}, ["fp16.hysteresis -1", "a whole number"]),
        ({"flops_profiler": True}, ["flops_profiler true", "an object"]),
        ({"comms_logger": {"enabled": "abc"}}, ['comms_logger.enabled "abc"', "true or false"]),
        ({"comms_logger": {"prof_ops": 5}}, ["comms_logger.prof_ops 5", "a list"]),
        ({"flops_profiler": {"profile_step": "x"}}, ['profile_step "x"', "a whole number"]),
        (
            {"flops_profiler": {"output_file": "/x"}},
            ["flops_profiler.output_file", "not a setting"],
        ),
        ({"zero_optimization.stage": 2}, ['"zero_optimization.stage": not a setting']),
        ({"zero_optimization": {"reduce_bucket_size": 1e300}}, ["1e+300", "a whole number"]),
        ({"fp16": {"initial_scale_power": 2000}}, ["2000", "a whole number up to 126"]),
        ({"optimizer": {"device": "none"}}, ["optimizer", "leave it out"]),
        ("{", ["not valid JSON"]),
        ("[]", ["list", "not a JSON object"]),
    ],
)
def test_refused(tmp_path, settings, words):
    with pytest.raises(RecipeError) as error:
        parse(tmp_path, settings)
    assert str(error.value).startswith("deepspeed.config: ")
    assert len(str(error.value).splitlines()) == 1
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_files_in_ds_configs_do_not_serve_another_precision(path, precision):
    recipe = {
        "name": "run",
        "plan": {"method": "full", "total_steps": 10},
        "data": {"path": "store"},
        "train": {"global_batch_size": 64, "micro_batch_size": 8, "precision": precision},
        "optimizer": {"learning_rate": 1e-3},
        "deepspeed": {"config": str(path)},
    }
    if precision in path.stem or "fp32" in path.stem:  # which leaves it to the recipe
        assert f"zero{deepspeed_json.zero_stage(deepspeed_json.read(str(path)))}_" in path.stem
        parse_recipe(recipe).check_world(2)
    else:
        with pytest.raises(RecipeError, match=r"deepspeed.config: .* write \"auto\""):
            parse_recipe(recipe)


def test_accumulation_depends_on_the_ranks(tmp_path):
    recipe = parse(tmp_path, {"gradient_accumulation_steps": 4})
    recipe.check_world(2)
    with pytest.raises(RecipeError, match=r"gradient_accumulation_steps 4.*on 4 ranks makes it 2"):
        recipe.check_world(4)


def test_stages_with_different_micro_batches_need_auto(tmp_path):
    long = {"share": 0.5, "micro_batch_size": 2}
    parse(tmp_path, {"train_micro_batch_size_per_gpu": "auto"}, long_sequence=long)
    with pytest.raises(RecipeError, match="makes it 2, 8"):
        parse(tmp_path, {"train_micro_batch_size_per_gpu": 8}, long_sequence=long)


def test_stages_with_different_global_batches_need_auto(tmp_path):
    stages = {
        "method": "custom",
        "total_steps": None,
        "stages": [
            {"depth": 12, "steps": 5},
            {"depth": 12, "steps": 5, "global_batch_size": 128},
        ],
    }
    parse(tmp_path, {"train_batch_size": "auto"}, **stages).check_world(2)
    with pytest.raises(RecipeError) as error:
        parse(tmp_path, {"train_batch_size": 64}, **stages)
    assert (
        "train_batch_size 64, but the plan makes it 64, 128 "
        '(stage 2: plan.stages.1.global_batch_size makes it 128); write "auto"'
    ) in str(error.value)
    recipe = parse(tmp_path, {"gradient_accumulation_steps": 4}, **stages)
    with pytest.raises(RecipeError, match=r"makes it 4, 8 \(stage 2: .* 128 on 2 ranks makes it 8"):
        recipe.check_world(2)


def test_no_file_is_zero_stage_0():
    assert deepspeed_json.read(None) == {}
    assert deepspeed_json.zero_stage({}) == 0
    assert deepspeed_json.zero_stage({"zero_optimization": {"stage": 2}}) == 2


@pytest.mark.parametrize("key", ["reduce_bucket_size", "allgather_bucket_size"])
def test_a_bucket_of_no_elements_is_refused(tmp_path, key):
    with pytest.raises(RecipeError, match=f"zero_optimization.{key} 0; .* a whole number above 0"):
        parse(tmp_path, {"zero_optimization": {"stage": 1, key: 0}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"zero_optimization": {"stage": 1}, "zero_optimization": {}}',
            "zero_optimization: given",
        ),
        ('{"fp16": {"hysteresis": 1, "hysteresis": 2}}', "hysteresis: given twice"),
        ('{"comms_logger": ' + "[" * 100_000 + "}", "not valid JSON"),
        ('{"gradient_clipping": ' + "9" * 5_000 + "}", "not valid JSON"),
    ],
)
def test_json_that_could_be_read_in_two_ways_or_none_is_refused(tmp_path, text, words):
    with pytest.raises(RecipeError, match=words):
        parse(tmp_path, text)


WHOLE = {
    "train_batch_size": 64, "gradient_clipping": 1.0, "amp": None, "steps_per_print": 10,
    "bf16": {"enabled": True}, "fp16": {"enabled": "auto", "loss_scale_window": 500},
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 5e8, "overlap_comm": True},
    "comms_logger": {"enabled": True, "prof_ops": []}, "flops_profiler": {"profile_step": 1},
}  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=damaged(WHOLE) | anything | st.text(max_size=30))
def test_whatever_it_holds_is_told_of_in_one_way(tmp_path, content):
    try:
        parse(tmp_path, content if isinstance(content, str) else json.dumps(content))
    except RecipeError as error:
        assert "deepspeed.config" in str(error) or "train.precision" in str(error)
