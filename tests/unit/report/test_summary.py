"""The table holds what the run wrote down, and a dash for what isn't there."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from mslt_ds.errors import CheckpointError
from mslt_ds.plan.cost import describe_plan
from mslt_ds.plan.methods import build_plan
from mslt_ds.recipe.loading import parse_recipe
from mslt_ds.report.summary import print_summary, summarize


def plan_stage(depth: int, frozen: int, trainable: int, total: int, seq_length: int = 128) -> dict:
    return {
        "depth": depth,
        "trainable_layers": depth - frozen,
        "frozen_layers": frozen,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "steps": 1200,
        "seq_length": seq_length,
        "global_batch_size": 8,
    }


MSLT = [plan_stage(2, 0, 50, 50), plan_stage(4, 2, 25, 100), plan_stage(4, 0, 100, 100)]


def write_run(run_dir, stages, lines):
    plan = {"total_steps": sum(stage["steps"] for stage in stages), "stages": stages}
    (run_dir / "plan.json").write_text(json.dumps(plan))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text)
    return run_dir


def stage_end(stage: int, seconds: float | None, mlm: float | None, **changes) -> dict:
    line = {"event": "stage_end", "step": 1200 * stage - 1, "stage": stage}
    line |= {"median_step_seconds": seconds, "eval_mlm_loss": mlm, "eval_nsp_loss": 0.6}
    return line | changes


WHOLE = [stage_end(1, 0.1, 6.5), stage_end(2, 0.2, 6.0), stage_end(3, 0.4, 5.5)]
RUN_END = {"event": "run_end", "step": 3600, "model": "runs/x/model", "unigram_entropy": 6.98}


def printed(run_dir) -> str:
    out = io.StringIO()
    print_summary(run_dir, Console(file=out, width=80, soft_wrap=True, highlight=False))
    return out.getvalue()


def test_losses_of_sentence_order_and_of_none(tmp_path):
    lines = [
        {key: value for key, value in line.items() if key != "eval_nsp_loss"} for line in WHOLE
    ]
    write_run(tmp_path, MSLT, [*lines[:2], lines[2] | {"eval_sop_loss": 0.456}, RUN_END])
    assert "SOP" in printed(tmp_path) and "0.456" in printed(tmp_path)
    write_run(tmp_path, MSLT, [*lines, RUN_END])
    assert summarize(tmp_path).stages[2].eval_losses == {"mlm": 5.5}
    assert printed(tmp_path)


def test_stages_carry_plan_and_measurements(tmp_path):
    summary = summarize(write_run(tmp_path, MSLT, [*WHOLE, RUN_END]))
    second = summary.stages[1]
    assert (second.depth, second.trainable_share, second.step_seconds) == (4, 0.25, 0.2)
    assert second.eval_losses == {"mlm": 6.0, "nsp": 0.6}
    assert [stage.speed_up for stage in summary.stages] == [4.0, 2.0, 1.0]
    assert summary.unigram_entropy == 6.98
    assert str(summary.model) == "runs/x/model"


def test_plan_as_the_run_writes_it(tmp_path):
    config = parse_recipe(
        {
            "name": "tiny",
            "model": {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4},
            "plan": {"method": "mslt", "num_stages": 2, "steps_per_stage": 10, "joint_steps": 5},
            "data": {"path": "somewhere"},
            "train": {"global_batch_size": 8, "micro_batch_size": 4},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        }
    ).config
    described = describe_plan(
        config, build_plan(config), vocab_size=100, world_size=1, zero_stage=0
    )
    stages = summarize(write_run(tmp_path, described["stages"], WHOLE)).stages
    assert [(stage.depth, stage.steps, stage.speed_up) for stage in stages] == [
        (2, 10, 4.0),
        (4, 10, 2.0),
        (4, 5, 1.0),
    ]
    assert stages[0].trainable_share == stages[2].trainable_share == 1.0
    assert 0.0 < stages[1].trainable_share < 0.6


def test_steps_of_other_lengths_are_not_compared(tmp_path):
    stages = [*MSLT[:2], plan_stage(4, 0, 100, 100, seq_length=512)]
    summary = summarize(write_run(tmp_path, stages, [*WHOLE, RUN_END]))
    assert [stage.speed_up for stage in summary.stages] == [None, None, 1.0]


def test_steps_of_other_batches_are_compared_by_the_instance(tmp_path):
    stages = [*MSLT[:2], MSLT[2] | {"global_batch_size": 32}]
    summary = summarize(write_run(tmp_path, stages, [*WHOLE, RUN_END]))
    assert [stage.speed_up for stage in summary.stages] == [1.0, 0.5, 1.0]


def test_growing_depth_with_nothing_frozen_is_no_full_step(tmp_path):
    """Gong et al.'s stacking trains all of a shallow model first."""
    stages = [plan_stage(2, 0, 50, 50), plan_stage(4, 0, 100, 100)]
    summary = summarize(write_run(tmp_path, stages, WHOLE[:2]))
    assert [stage.speed_up for stage in summary.stages] == [2.0, 1.0]


def test_interrupted_run_uses_the_steps_so_far(tmp_path):
    steps = [
        {"step": step, "stage": 2, "step_seconds": seconds}
        for step, seconds in ((1209, 0.2), (1219, 9.0), (1229, 0.3))
    ]
    run_dir = write_run(tmp_path, MSLT, [WHOLE[0], *steps])
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12')
    summary = summarize(run_dir)
    assert [stage.step_seconds for stage in summary.stages] == [0.1, 0.3, None]
    assert [stage.speed_up for stage in summary.stages] == [None, None, None]
    assert summary.model is None
    text = printed(run_dir)
    assert "–" in text
    assert "not written yet" in text


def test_stage_ended_twice_counts_as_it_ended_last(tmp_path):
    lines = [stage_end(1, 0.5, 7.0), *WHOLE]
    assert summarize(write_run(tmp_path, MSLT, lines)).stages[0].eval_losses["mlm"] == 6.5


def test_table_shows_stages_entropy_and_how_to_load(tmp_path):
    text = printed(write_run(tmp_path, MSLT, [*WHOLE, RUN_END]))
    row = next(line for line in text.splitlines() if "2/3" in line)
    for cell in ("4", "25.0%", "1,200", "128", "0.2 s", "2.00x", "6.000", "0.600"):
        assert f" {cell} " in row, cell
    assert "unigram entropy of the training text: 6.980 nats\n" in text
    assert "held-out MLM loss: 5.500, 1.480 below it\n" in text
    assert 'AutoModelForPreTraining.from_pretrained("runs/x/model")' in text


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "AlbertForMaskedLM"])
def test_a_model_of_packed_sentences_is_loaded_as_a_masked_lm(tmp_path, architecture):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    text = printed(write_run(tmp_path, MSLT, [*WHOLE, RUN_END]))
    assert "import AutoModelForMaskedLM, AutoTokenizer" in text
    assert 'AutoModelForMaskedLM.from_pretrained("runs/x/model")' in text
    assert "PreTraining" not in text


def test_table_of_a_long_run_fits_80_columns(tmp_path):
    stages = [stage | {"steps": 1_000_000} for stage in MSLT] * 4
    text = printed(write_run(tmp_path, stages, [stage_end(12, 123.4567, 10.5)]))
    table = text[text.index("stage") : text.index("trained: ")]
    assert "…" not in table
    assert "123.5 s" in table
    assert "12/12" in table
    assert max(map(len, table.splitlines())) <= 80


def test_loss_above_the_entropy_is_told(tmp_path):
    lines = [*WHOLE[:2], stage_end(3, 0.4, 7.48), RUN_END]
    assert "0.500 above it" in printed(write_run(tmp_path, MSLT, lines))


def test_run_without_evaluation(tmp_path):
    ends = [{"event": "stage_end", "step": 0, "stage": stage} for stage in (1, 2, 3)]
    run_dir = write_run(tmp_path, MSLT, [*ends, RUN_END])
    assert all(not stage.eval_losses for stage in summarize(run_dir).stages)
    text = printed(run_dir)
    assert "unigram entropy of the training text: 6.980 nats\n" in text
    assert "MLM loss:" not in text


@pytest.mark.parametrize("missing", ["plan.json", "metrics.jsonl"])
def test_folder_of_no_run_is_named(tmp_path, missing):
    write_run(tmp_path, MSLT, WHOLE)
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=rf"{missing}: no such file"):
        summarize(tmp_path)
