"""What a calibration makes of a short run's metrics. tests/distributed runs one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mslt_ds.plan.hours import Model
from mslt_ds.planning.calibrate import Calibration, StageTimes, _on_line, _read, _short_recipe
from mslt_ds.recipe.loading import load_recipe, parse_recipe

CONFIGS = Path(__file__).parents[3] / "configs"


def test_times_of_a_short_run(tmp_path):
    """Two stages of 4 steps, a line every 2: starting takes 10 s, the first steps 3 s each, the others 1
    and 2 s, what is between 5 s, the end 4 s."""
    lines = [
        {"event": "stage_start", "step": 0, "stage": 1, "time": 110.0},
        {"step": 1, "stage": 1, "time": 114.0, "step_seconds": 2.0},
        {"step": 3, "stage": 1, "time": 116.0, "step_seconds": 1.0},
        {"event": "stage_end", "step": 3, "stage": 1, "time": 118.0},
        {"event": "stage_start", "step": 4, "stage": 2, "time": 121.0},
        {"step": 5, "stage": 2, "time": 126.0, "step_seconds": 2.5},
        {"step": 7, "stage": 2, "time": 130.0, "step_seconds": 2.0},
        {"event": "stage_end", "step": 7, "stage": 2, "time": 131.0},
        {"event": "run_end", "step": 8, "time": 134.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = _read(tmp_path, 100.0)
    assert first == StageTimes(step=1.0, overhead=21 - 4 * 1.0)
    assert second == StageTimes(step=2.0, overhead=13 - 4 * 2.0)


def test_many_micro_batches_lie_on_a_line():
    # 3 s for each micro-batch and 1 s for the step.
    assert _on_line(few=4.0, more=13.0, accumulated=32) == 97.0
    assert _on_line(few=4.0, more=7.0, accumulated=2) == 7.0


@pytest.mark.parametrize(
    "name", ["bert_base_mslt_squad", "bert_large_stacking", "albert_base_mslt"]
)
def test_the_short_recipe_has_the_same_stages(name):
    recipe = load_recipe(CONFIGS / f"{name}.yaml")
    short = parse_recipe(_short_recipe(recipe, 30_522, 2, 8, 4))
    assert len(short.plan.stages) == len(recipe.plan.stages)
    for own, whole in zip(short.plan.stages, recipe.plan.stages, strict=True):
        for key in ("depth", "trainable_layers", "seq_length", "micro_batch_size", "init"):
            assert getattr(own, key) == getattr(whole, key)
        assert own.steps == 8 and own.gradient_accumulation_steps(2) == 4
    assert short.config.optimizer == recipe.config.optimizer


def test_what_was_measured_is_told():
    recipe = load_recipe(CONFIGS / "bert_base_mslt.yaml", ["checkpoint.every_steps=100_000"])
    plan = recipe.plan
    calibration = Calibration(tuple(StageTimes(s, 10.0) for s in (1.0, 2, 3, 4, 9)), 5.0, 12)
    assert calibration.overhead(recipe.config, plan) == [15.0] * 5  # one more in each stage
    model = Model(recipe.config, 30_522, 0)
    step_time = calibration.step_time(model, plan)
    assert [step_time(stage) for stage in plan.stages] == [1.0, 2, 3, 4, 9]
