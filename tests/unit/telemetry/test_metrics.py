"""metrics.jsonl tells one story, whatever happened to the process that wrote it."""

from __future__ import annotations

import json
import math

import pytest

from mslt_ds.telemetry.metrics import MetricsWriter, json_safe, read_lines, scalars


def step_line(step: int, **changes) -> dict:
    return {"step": step, "time": 1.0, "stage": 1, "loss": 1 / (step + 3)} | changes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, resume_step: int, lines) -> None:
    writer = MetricsWriter(path, resume_step)
    for line in lines:
        writer.write(line)
    writer.close()


def test_numbers_come_back_exactly(path):
    lines = [step_line(step) for step in range(20)]
    write(path, 0, lines)
    assert list(read_lines(path)) == lines


def test_line_is_readable_before_the_file_is_closed(path):
    writer = MetricsWriter(path, 0)
    writer.write(step_line(0))
    assert [line["step"] for line in read_lines(path)] == [0]
    writer.close()


def test_resumed_file_equals_the_uninterrupted_one(path, tmp_path):
    lines = [step_line(step) for step in range(9)]
    whole = tmp_path / "whole.jsonl"
    write(whole, 0, lines)
    write(path, 0, [*lines[:7], {"event": "stage_end", "step": 6, "time": 2.0}])
    write(path, 4, lines[4:])
    assert path.read_bytes() == whole.read_bytes()


def test_run_that_starts_over_begins_with_an_empty_file(path):
    write(path, 0, [{"event": "stage_start", "step": 0, "time": 1.0}, step_line(0)])
    write(path, 0, [])
    assert path.read_bytes() == b""


@pytest.mark.parametrize("damage", [b"\xff\0{", b"[" * 9999, b"5", b'{"step": "1"}'])
def test_a_damaged_line_is_left_out(path, damage):
    write(path, 0, [step_line(0)])
    path.write_bytes(path.read_bytes() + damage + b"\n")
    write(path, 1, [step_line(1)])
    assert [line["step"] for line in read_lines(path)] == [0, 1]


@pytest.mark.parametrize("cut", range(1, 40))
def test_last_line_torn_by_a_kill_is_dropped(path, cut):
    write(path, 0, [step_line(0), step_line(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    write(path, 5, [step_line(5)])
    kept = [line["step"] for line in read_lines(path)]
    # Without its line break alone, the line is still whole.
    assert kept == ([0, 1, 5] if cut == 1 else [0, 5])
    assert path.read_text().count("\n") == len(kept)


def test_failed_truncation_keeps_the_old_file(path, monkeypatch):
    write(path, 0, [step_line(step) for step in range(4)])
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("mslt_ds.atomic.flush_to_disk", fail)
    with pytest.raises(OSError):
        MetricsWriter(path, 2)
    assert path.read_bytes() == before


def test_numbers_that_json_lacks_become_null(path):
    line = step_line(0, loss=math.nan, grad_norm=math.inf, more={"a": [-math.inf, 1.5]})
    write(path, 0, [line])

    def refuse(constant):
        raise AssertionError(f"{constant} isn't JSON")

    written = json.loads(path.read_text(), parse_constant=refuse)
    assert written["loss"] is None
    assert written["grad_norm"] is None
    assert written["more"] == {"a": [None, 1.5]}


def test_json_safe_keeps_what_is_no_float():
    value = {"a": [1, "x", None, True], "b": (2.5,)}
    assert json_safe(value) == {"a": [1, "x", None, True], "b": [2.5]}


def test_scalars_are_the_numbers_by_tag():
    line = step_line(3, loss=2.0, note="text", flag=True, none=None, trust_ratio={"layer.0": 0.5})
    assert scalars(line) == {"train/stage": 1, "train/loss": 2.0, "train/trust_ratio/layer.0": 0.5}
    event = {"event": "stage_end", "step": 3, "time": 1.0, "stage": 2, "eval_mlm_loss": 5.0}
    assert scalars(event) == {"stage_end/stage": 2, "stage_end/eval_mlm_loss": 5.0}
