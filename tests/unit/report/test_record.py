"""What a run folder's records say of its state and of its time."""

from __future__ import annotations

import json

import pytest

from mslt_ds.errors import CheckpointError
from mslt_ds.report.record import RunRecord
from tests.unit.analysis.runs import ENTROPY, T0, write_run


def read(folder) -> RunRecord:
    return RunRecord.read(folder)


def test_training_time_is_that_of_the_steps_alone(tmp_path):
    run = read(write_run(tmp_path / "run", resumed_at=60))
    own = [0.1 * layers / 3 for layers in (2 + 4, 4 + 4, 4 + 8)]
    steps = [100, 100, 50]
    for stage in (1, 2, 3):
        assert run.stage_seconds(stage) == pytest.approx(steps[stage - 1] * own[stage - 1])
    assert run.total_training_seconds == pytest.approx(
        sum(n * seconds for n, seconds in zip(steps, own, strict=True))
    )
    assert run.training_seconds == sorted(run.training_seconds)


def test_wall_clock_is_told_whole(tmp_path):
    run = read(write_run(tmp_path / "run", resumed_at=60))
    parts = run.wall_clock()
    assert sum(parts.values()) == pytest.approx(run.lines[-1]["time"] - run.lines[0]["time"])
    assert parts["pauses"] == pytest.approx(3600)
    assert parts["held-out evaluation"] == pytest.approx(3 * 1.5)
    assert parts["stage changes"] == pytest.approx(2 * 2.0)
    assert parts["waiting for data"] == pytest.approx(run.total_training_seconds / 10)


def test_steps_without_a_line_count_as_the_last_that_has_one(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line.get("step") != 99 or "event" in line]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read(folder)
    assert run.stage_seconds(1) == pytest.approx(100 * 0.2)
    assert run.total_training_seconds == pytest.approx(sum(map(run.stage_seconds, (1, 2, 3))))


def test_states(tmp_path):
    assert read(write_run(tmp_path / "done")).state() == "finished"
    folder = write_run(tmp_path / "killed", steps=130)
    run = read(folder)
    assert run.steps_done == 130
    last = run.lines[-1]["time"]
    assert run.state(now=last + 60) == "running"
    assert run.state(now=last + 3600) == "not running"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "stopped", "step": 129, "time": last + 1}) + "\n")
    assert read(folder).state(now=last + 60) == "stopped"


def test_slow_steps_are_waited_for(tmp_path):
    run = read(write_run(tmp_path / "run", steps=130, step_seconds=300.0))
    assert run.state(now=run.lines[-1]["time"] + 3 * 3600) == "running"


def test_a_run_that_has_only_begun(tmp_path):
    folder = write_run(tmp_path / "run", steps=5)
    (folder / "metrics.jsonl").write_text("")
    run = read(folder)
    assert (run.steps_done, run.total_training_seconds, run.unigram_entropy) == (0, 0.0, None)
    assert sum(run.wall_clock().values()) == 0


def test_resumes_are_found_inside_a_stage_and_after_a_stop_at_its_end(tmp_path):
    folder = write_run(tmp_path / "run", resumed_at=60)
    assert [line["step"] for line in read(folder).resumes()] == [60]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    at = next(i for i, line in enumerate(lines) if line.get("event") == "stage_end")
    lines.insert(at + 1, {"event": "stopped", "step": 99, "time": T0 + 5000})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["step"] for line in read(folder).resumes()] == [60, 100]


def test_entropy_of_a_run_that_goes_on_comes_from_its_store(tmp_path, monkeypatch):
    from mslt_ds.report import record

    run = read(write_run(tmp_path / "run", steps=130))
    assert run.unigram_entropy is None, "the store isn't there"

    class Store:
        @staticmethod
        def unigram_entropy():
            return ENTROPY

    monkeypatch.setattr(record.TokenStore, "open", lambda path: Store)
    assert read(tmp_path / "run").unigram_entropy == ENTROPY


@pytest.mark.parametrize(
    "text", ["[]", "{", "[" * 9999, '{"stages": []}', '{"stages": [{"depth": 2}]}']
)
def test_a_plan_that_is_none_is_named(tmp_path, text):
    folder = write_run(tmp_path / "run")
    (folder / "plan.json").write_text(text)
    with pytest.raises(CheckpointError, match="plan.json: not the plan of a run"):
        read(folder)


def test_a_damaged_recipe_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "recipe.yaml").write_text("a: [")
    assert read(folder).recipe == {}
