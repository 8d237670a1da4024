"""How far a run is, as another shell reads it from the run folder."""

from __future__ import annotations

import json

from mslt_ds.cli import main
from mslt_ds.report.record import RunRecord
from mslt_ds.report.status_command import status_lines
from tests.unit.analysis.runs import write_run


def lines_of(folder, later: float = 5.0) -> list[str]:
    run = RunRecord.read(folder)
    return status_lines(run, run.lines[-1]["time"] + later)


def test_a_run_that_goes_on(tmp_path):
    folder = write_run(tmp_path / "run", steps=130, resumed_at=60)
    start = {"host": "node-7", "device": "H100", "world_size": 8, "slurm_job": "4711"}
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\n" + '{"cut')
    # Stage 2 has 70 steps of 8/30 s left; then 50 joint ones of 12/30 s.
    assert lines_of(folder) == [
        f"{folder}: running, last line 5 s ago",
        "Slurm job 4711, node-7: 8 ranks, H100",
        "stage 2/3: step 30 of 100, depth 4, 2 layers train",
        "run: step 130 of 250 (52%)",
        "loss 5.316  lr 1.00e-03  30 sequences/s  1,920 tokens/s  0.10 GB",
        "left: stage 19 s, run 39 s",
        "held-out loss after stage 1: MLM 5.857, NSP 0.610",
        "resumes: 1, the last at step 60",
    ]


def test_a_finished_run(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    assert main(["status", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{folder}: finished, last line ")
    assert "run: step 250 of 250 (100%)" in out
    assert f"model: {folder}/model" in out
    assert "left" not in out


def test_a_run_before_its_first_line(tmp_path):
    folder = write_run(tmp_path / "run", steps=1)
    assert lines_of(folder)[1:] == [
        "stage 1/3: step 0 of 100, depth 2, 2 layers train",
        "run: step 0 of 250 (0%)",
    ]


def test_faults_are_counted(tmp_path):
    folder = write_run(tmp_path / "run", steps=130)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (127, 128):
            fault = {"event": "step_skipped", "step": step, "time": 1.0, "reason": "x"}
            file.write(json.dumps(fault) + "\n")
    assert "step_skipped: 2, the last at step 128" in lines_of(folder)


def test_no_run(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "plan.json: no such file" in capsys.readouterr().err
