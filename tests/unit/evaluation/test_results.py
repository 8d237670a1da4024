"""The learning rate chosen on dev, medians, spreads, the table and the comparison."""

from __future__ import annotations

import pytest

from mslt_ds.evaluation.glue.tasks import TASKS
from mslt_ds.evaluation.results import average, compare, summarize, table

COLUMNS = {
    name: {split.name: TASKS[name].metrics for split in TASKS[name].dev}
    for name in ("MRPC", "MNLI")
}


def cell(task, rate, seed, **scores):
    return {
        "task": task, "learning_rate": rate, "seed": seed, "scores": scores, "train_examples": 3668,
    }  # fmt: skip


def mrpc(rate, seed, f1, accuracy):
    return cell("MRPC", rate, seed, MRPC={"f1": f1, "accuracy": accuracy})


def mnli(rate, seed, matched, mismatched):
    scores = {"MNLI-m": {"accuracy": matched}, "MNLI-mm": {"accuracy": mismatched}}
    return cell("MNLI", rate, seed, **scores)


CELLS = [
    mrpc(5e-5, 1, 0.80, 0.70), mrpc(5e-5, 2, 0.90, 0.86), mrpc(5e-5, 3, 0.82, 0.72),
    mrpc(2e-5, 1, 0.85, 0.75), mrpc(2e-5, 2, 0.84, 0.74), mrpc(2e-5, 3, 0.87, 0.73),
    mnli(5e-5, 1, 0.60, 0.90), mnli(5e-5, 2, 0.62, 0.91), mnli(5e-5, 3, 0.61, 0.92),
    mnli(2e-5, 1, 0.70, 0.71), mnli(2e-5, 2, 0.72, 0.70), mnli(2e-5, 3, 0.71, 0.72),
]  # fmt: skip


def results(cells=CELLS, model="a", constants=None, **changes):
    content = {"model": model, "quick": False, "protocol": "the paper's", "cells": cells}
    content |= {"devices": {"a CPU": len(cells)}}
    return content | {"tasks": summarize(cells, COLUMNS, constants or {})} | changes


def test_the_best_median_decides_not_the_best_run():
    found = summarize(CELLS, COLUMNS, {})["MRPC"]
    assert found["learning_rate"] == 2e-5
    assert (found["runs"], found["runs_at_learning_rate"]) == (6, 3)
    column = found["columns"]["MRPC"]
    assert column["metric"] == "f1"
    assert column["f1"]["median"] == 0.85
    assert column["f1"]["spread"] == pytest.approx(0.03)
    assert column["accuracy"]["median"] == 0.74
    assert found["median_at_each_learning_rate"] == {"5e-05": 0.82, "2e-05": 0.85}


def test_mnli_is_chosen_on_the_matched_set():
    found = summarize(CELLS, COLUMNS, {})["MNLI"]
    assert found["learning_rate"] == 2e-5
    assert found["columns"]["MNLI-mm"]["accuracy"]["median"] == 0.71


def test_mnli_counts_once_in_the_average():
    assert average(results()) == pytest.approx((0.85 + (0.71 + 0.71) / 2) / 2)


def test_the_table():
    lines = table(results(quick=True)).splitlines()
    assert lines[0].startswith("**Quick grid**")
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert [cell.strip() for cell in rows[""].split("|")[2:-1]] == [
        "MRPC", "MNLI-m", "MNLI-mm", "average",
    ]  # fmt: skip
    assert rows["median"].split() == "| median | 85.0 | 71.0 | 71.0 | 78.0 |".split()  # noqa: SIM905
    assert "3.0 | 2.0 | 2.0" in rows["spread"]
    assert "accuracy 74.0" in rows["besides"]
    assert "2e-05 | 2e-05" in rows["best learning rate"]
    assert "| 6 | 6 | 6 |" in rows["runs"]


def test_what_one_answer_for_all_scores_stands_beside():
    constants = {"MRPC": {"MRPC": {"f1": 0.812, "accuracy": 0.684}}}
    row = "| one answer for all | 81.2 |  |  |  |"
    text = table(results(constants=constants))
    assert row in text and "One answer for all: what the best constant answer scores" in text
    assert "one answer" not in table(results()).lower()
    side_by_side = compare([results(constants=constants), results(model="b")])
    assert "| one answer for all | 81.2 |  |  |" in side_by_side
    assert "one answer" not in compare([results(), results(model="b")])


def test_the_table_names_all_devices():
    assert "Device: a CPU (12 runs)" in table(results())
    assert "different devices" not in table(results())
    text = table(results(devices={"a GPU": 8, "a CPU": 4}))
    assert "Device: a GPU (8 runs), a CPU (4 runs)" in text
    assert "made on different devices" in text


def test_rates_that_are_nearly_equal_stay_apart():
    cells = [mrpc(rate, 1, 0.8, 0.7) for rate in (5e-5, 5.0000001e-5)]
    found = summarize(cells, {"MRPC": COLUMNS["MRPC"]}, {})["MRPC"]
    assert list(found["median_at_each_learning_rate"]) == ["5e-05", "5.0000001e-05"]


def test_the_comparison_tells_what_exceeds_the_spread():
    better = [
        mrpc(2e-5, 1, 0.90, 0.8), mrpc(2e-5, 2, 0.89, 0.8), mrpc(2e-5, 3, 0.91, 0.8),
        mnli(2e-5, 1, 0.72, 0.71), mnli(2e-5, 2, 0.73, 0.72), mnli(2e-5, 3, 0.71, 0.73),
    ]  # fmt: skip
    text = compare([results(), results(better, "b", protocol="another")])
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "85.0 (3.0)" in rows["A"]
    assert "90.0 (2.0)" in rows["B"]
    assert "| +5.0 | +1.0 | +1.0 |" in rows["B - A"]
    assert "| yes | no | no |" in rows["exceeds the spread"]
    assert "Different recipes: B: another" in text


def test_tasks_that_are_not_in_all_are_named():
    only = results()
    del only["tasks"]["MNLI"]
    text = compare([results(), only])
    assert "MNLI-m" not in text
    assert "Not in all of them: A: MNLI" in text
    assert "Not in all" not in compare([results(), results()])


def test_the_comparison_names_quick_grids():
    lines = compare([results(), results(model="b", quick=True)]).splitlines()
    assert lines[:2] == ["- A: a", "- B: b (quick grid)"]


def test_a_single_run_has_no_spread_to_exceed():
    single = [mrpc(2e-5, 1, 0.90, 0.8), mnli(2e-5, 1, 0.9, 0.9)]
    assert "one run: unknown" in compare([results(), results(single, "b")])
