"""Stages seen from outside: what is frozen does not move by a bit, what is new is a copy, and the
fp32 numbers cross every boundary."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from tests.distributed.recipes import (
    LAYERS,
    SCRIPTS,
    events_of,
    metrics_of,
    moved_in,
    recipe,
    weights_at,
    write_recipes,
    zero_config,
)


@pytest.fixture(scope="module")
def runs(module_launch, store, tmp_path_factory) -> Path:
    """One mslt run for each precision, one with each ZeRO stage, on two ranks."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = []
    for precision in ("fp32", "bf16"):
        for zero in (0, 1, 2):
            recipes.append(
                recipe(store, folder, f"{precision}-{zero}",
                       train={"precision": precision, "profile_steps": 2 if zero == 0 else 0},
                       deepspeed=zero_config(folder, zero))
            )  # fmt: skip
    module_launch(SCRIPTS / "run_recipes.py", 2, write_recipes(folder / "recipes.json", recipes))
    return folder


def layer_of(name: str) -> int | None:
    return int(name.split(".")[3]) if name.startswith("bert.encoder.layer.") else None


def is_head(name: str) -> bool:
    return name.startswith(("cls.", "bert.pooler."))


CASES = [f"{precision}-{zero}" for precision in ("fp32", "bf16") for zero in (0, 1, 2)]


@pytest.mark.parametrize("case", CASES)
def test_frozen_layers_and_embeddings_do_not_move_by_a_bit(runs, case):
    before = weights_at(runs / case, "stages/1/end")
    for folder in ("stages/2/start", "stages/2/end"):
        after = weights_at(runs / case, folder)
        for name, tensor in before.items():
            if layer_of(name) is not None or name.startswith("bert.embeddings."):
                assert torch.equal(after[name], tensor), (folder, name)


@pytest.mark.parametrize("case", CASES)
def test_new_layers_start_as_copies_of_the_top_ones(runs, case):
    before = weights_at(runs / case, "stages/1/end")
    start = weights_at(runs / case, "stages/2/start")
    assert len(start) > len(before)
    for name, tensor in start.items():
        layer = layer_of(name)
        if layer is not None and layer >= LAYERS // 2:
            source = name.replace(f"layer.{layer}.", f"layer.{layer - LAYERS // 2}.")
            assert torch.equal(tensor, before[source]), name


@pytest.mark.parametrize("case", CASES)
def test_new_layers_and_heads_train_in_stage_2_and_everything_in_the_joint_stage(runs, case):
    everything = set(weights_at(runs / case, "stages/3/end"))
    new_and_heads = {n for n in everything if is_head(n) or (layer_of(n) or 0) >= LAYERS // 2}
    assert moved_in(runs / case, 2) == new_and_heads
    assert moved_in(runs / case, 3) == everything


@pytest.mark.parametrize("case", CASES)
def test_fp32_numbers_cross_the_boundaries(runs, case):
    for stage in (1, 2):
        end = weights_at(runs / case, f"stages/{stage}/end")
        start = weights_at(runs / case, f"stages/{stage + 1}/start")
        for name, tensor in end.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(start[name], tensor), name
    # ... and they are numbers that bf16 could not hold.
    head = weights_at(runs / case, "stages/2/start")["cls.predictions.transform.dense.weight"]
    assert not torch.equal(head, head.bfloat16().float())


@pytest.mark.parametrize("case", CASES)
def test_what_is_reduced_is_the_suffix_and_nothing_else(runs, case):
    plan = json.loads((runs / case / "plan.json").read_text())
    expected = {s["stage"]: s["elements_reduced_per_step"] for s in plan["stages"]}
    lines = metrics_of(runs / case)
    assert [line["step"] for line in lines] == list(range(plan["total_steps"]))
    for line in lines:
        assert line["elements_reduced"] == expected[line["stage"]]
    assert expected[2] < 0.6 * expected[3]
    gathered = {line["elements_gathered"] > 0 for line in lines}
    assert gathered == {not case.endswith("-0")}


@pytest.mark.parametrize("case", CASES)
def test_throughput_counts_real_tokens(runs, case):
    lines = metrics_of(runs / case)
    config = json.loads((runs / case / "model" / "config.json").read_text())
    for line in lines:
        places = line["sequences_per_second"] * 32
        assert line["tokens_per_second"] == pytest.approx((1 - line["padding"]) * places)
        assert 0 <= line["padding"] < 0.6 and line["flops_per_second"] > 0
        assert "mfu" not in line  # the peak rate of a CPU isn't known
    assert any(line["padding"] > 0 for line in lines)
    # The instances of a step don't depend on ZeRO and precision, and neither do their tokens.
    other = metrics_of(runs / "fp32-0")
    assert [x["padding"] for x in lines] == pytest.approx([x["padding"] for x in other])
    joint = [line["flops_per_second"] / line["sequences_per_second"] for line in lines[-4:]]
    staged = [line["flops_per_second"] / line["sequences_per_second"] for line in lines[5:10]]
    assert config["num_hidden_layers"] == LAYERS and min(joint) > max(staged)


@pytest.mark.parametrize("case", CASES)
def test_waits_for_first_steps_are_told(runs, case):
    events = [e for e in events_of(runs / case) if e["event"] == "first_step"]
    assert [(e["stage"], e["step"]) for e in events] == [(1, 0), (2, 5), (3, 10)]
    assert [e["since"] for e in events] == ["command", "last_step", "last_step"]
    assert all(0 < e["seconds"] < 600 for e in events)


@pytest.mark.parametrize("case", ["fp32-0", "bf16-0"])
def test_profiled_steps_are_divided_into_parts(runs, case):
    tables = [e for e in events_of(runs / case) if e["event"] == "profile"]
    assert [table["stage"] for table in tables] == [1, 2, 3]
    for table in tables:
        parts = table["parts"]
        # The prefix runs ahead, beside the rest: parts may add up to more than the step.
        assert sum(parts.values()) >= 0.999 * table["step_seconds"]
        assert (parts["prefix"] > 0) == (table["stage"] == 2)
        trained = ("suffix forward", "backward", "reduction", "optimizer", "data")
        assert all(parts[name] > 0 for name in trained), parts
        assert table["profiled_steps"] == 2 and table["tokens_per_second"] > 0
        file = runs / case / "profile" / f"stage_{table['stage']}_parts.json"
        assert json.loads(file.read_text())["parts"] == parts
        trace = gzip.decompress((file.parent / f"stage_{table['stage']}.json.gz").read_bytes())
        assert json.loads(trace)["traceEvents"]
    assert not (runs / "fp32-1" / "profile").exists()


def test_zero_stages_agree(runs):
    """In bf16 a gradient near 0 rounds to either sign and Adam makes a whole step of it, so single
    weights differ much; all together differ little from how far they have moved."""
    for precision, tolerance in (("fp32", 1e-3), ("bf16", 0.3)):
        reference = weights_at(runs / f"{precision}-0", "model")
        start = weights_at(runs / f"{precision}-0", "stages/3/start")
        for zero in (1, 2):
            other = weights_at(runs / f"{precision}-{zero}", "model")
            difference = sum((other[name] - reference[name]).square().sum() for name in reference)
            moved = sum((reference[name] - start[name]).square().sum() for name in reference)
            assert difference < tolerance**2 * moved, (precision, zero)
