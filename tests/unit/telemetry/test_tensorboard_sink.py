"""Real event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import pytest

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.telemetry import tensorboard_sink
from mslt_ds.telemetry.tensorboard_sink import FOLDER, TensorboardSink

pytest.importorskip("tensorboard")


def curve(run_dir, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run_dir / FOLDER))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def write(run_dir, resume_step: int, steps, loss: float) -> None:
    sink = TensorboardSink(run_dir, resume_step)
    for step in steps:
        sink.write({"step": step, "time": 100.0 + step, "loss": loss, "grad_norm": None})
    sink.write({"event": "stage_end", "step": steps[-1], "time": 200.0, "eval_mlm_loss": 5.0})
    sink.close()


def test_steps_and_events_are_scalars_at_their_step(tmp_path):
    write(tmp_path, 0, range(3), loss=2.5)
    assert curve(tmp_path, "train/loss") == [(0, 2.5), (1, 2.5), (2, 2.5)]
    assert curve(tmp_path, "stage_end/eval_mlm_loss") == [(2, 5.0)]


def test_resumed_run_shows_each_step_once(tmp_path):
    write(tmp_path, 0, range(8), loss=1.0)
    write(tmp_path, 5, range(5, 10), loss=2.0)
    assert curve(tmp_path, "train/loss") == [
        *((step, 1.0) for step in range(5)),
        *((step, 2.0) for step in range(5, 10)),
    ]


def test_missing_package_is_named_with_the_key(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"^telemetry\.tensorboard: true, .*pip install"):
        tensorboard_sink.check_installed()
