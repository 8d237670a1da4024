"""What is handed over is written in order, tried again where the disk fails, and not for ever."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig

from mslt_ds.disk.checkpoint import CheckpointFolder
from mslt_ds.disk.run_folder import RunFolder
from mslt_ds.disk.writer import Job, Writer
from mslt_ds.errors import EnvironmentProblem
from mslt_ds.recipe.loading import load_recipe
from mslt_ds.state import TrainingState
from mslt_ds.telemetry.metrics import MetricsWriter, read_lines
from tests.volume import Volume

ROOT = Path(__file__).parents[3]


class Disk:
    """Takes jobs, and fails while `is_full`."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.is_full = False
        self.begun = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def job(self, name: str, is_checkpoint: bool = False) -> Job:
        def write() -> None:
            self.begun.set()
            self.may_go_on.wait()
            if self.is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.written.append(name)

        return Job(name, write, is_checkpoint)


def test_jobs_are_written_in_order_while_the_caller_goes_on():
    disk, writer = Disk(), Writer(60)
    disk.may_go_on.clear()
    writer.write(disk.job("stage 1"))
    writer.write(disk.job("10", is_checkpoint=True))
    writer.write(disk.job("stage 2"))
    assert writer.is_busy and not disk.written
    disk.may_go_on.set()
    assert writer.wait(60) and writer.unwritten is None
    assert disk.written == ["stage 1", "10", "stage 2"]


def test_a_newer_checkpoint_takes_the_place_of_one_that_waits(caplog):
    disk, writer = Disk(), Writer(60)
    disk.is_full = True
    for name in ("10", "20"):
        writer.write(disk.job(name, is_checkpoint=True))
        assert writer.wait(60)
    assert writer.unwritten == "20: No space left on device"
    assert "10 can't be written (No space left on device); the run goes on" in caplog.text
    writer.write(disk.job("stage 1"))
    assert writer.wait(60)
    disk.is_full = False
    writer.write(disk.job("30", is_checkpoint=True))
    assert writer.wait(60) and writer.unwritten is None
    assert disk.written == ["stage 1", "30"]  # never a checkpoint before what comes before it


def test_one_that_is_being_written_is_not_taken_away():
    disk, writer = Disk(), Writer(60)
    disk.may_go_on.clear()
    for name in ("10", "20", "30"):
        writer.write(disk.job(name, is_checkpoint=True))
        assert disk.begun.wait(60)
    disk.may_go_on.set()
    assert writer.wait(60)
    assert disk.written == ["10", "30"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The writer's, at `now` until the test moves it."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=time.sleep)
    monkeypatch.setattr("mslt_ds.disk.writer.time", clock)
    return clock


def test_only_after_give_up_after_does_it_end(clock):
    disk, writer = Disk(), Writer(50)
    disk.is_full = True
    with pytest.raises(
        EnvironmentProblem, match="give_up_after: nothing could be .*No space left"
    ) as e:
        for step in range(100):
            clock.now = 10.0 * step
            writer.write(disk.job(str(step), is_checkpoint=True))
            assert writer.wait(60)
    assert clock.now == 50
    assert e.value.exit_code == 3 and "\n" not in str(e.value)


def test_a_success_in_between_is_enough(clock):
    disk, writer = Disk(), Writer(40)
    for step in range(10):
        clock.now = 30.0 * step
        disk.is_full = step % 2 == 1
        writer.write(disk.job(str(step), is_checkpoint=True))
        assert writer.wait(60)


def test_a_disk_that_does_not_answer_is_given_up_too(clock):
    disk, writer = Disk(), Writer(30)
    disk.may_go_on.clear()
    writer.write(disk.job("10", is_checkpoint=True))
    clock.now = 29.0
    assert not writer.wait(0.1)
    clock.now = 30.0
    with pytest.raises(EnvironmentProblem, match="the disk doesn't answer"):
        writer.wait(0.1)
    disk.may_go_on.set()


def test_at_the_end_it_tries_again_until_everything_is_written():
    disk, writer = Disk(), Writer(60)
    disk.is_full = True
    writer.write(disk.job("model"))
    tries = 0
    while not writer.wait(0.05, tries_again=True):
        tries += 1
        disk.is_full = tries < 4
    assert disk.written == ["model"] and tries >= 4


def test_what_is_no_disks_error_is_raised_where_the_run_is():
    def broken() -> None:
        raise ValueError("a mistake of the program")

    writer = Writer(60)
    writer.write(Job("model", broken))
    with pytest.raises(ValueError, match="a mistake"):
        writer.wait(60)
        writer.wait(60)


# ---- real disks ------------------------------------------------------------------------------

STATE_FLOATS = 500_000


FAULTS = {
    "full": (Volume.fill, Volume.free, "No space left"),
    "read-only": (
        lambda v: v.set_read_only(True), lambda v: v.set_read_only(False), "Read-only file system",
    ),
    "gone": (Volume.detach, Volume.attach, "No such file"),
}  # fmt: skip


def folder_at(path: Path) -> RunFolder:
    return RunFolder(
        path, True, CheckpointFolder(path / "checkpoints", 1), {}, lambda _: BertConfig(), Path(), Writer(60),
    )  # fmt: skip


def state_at(step: int) -> TrainingState:
    return TrainingState(step, {"a": torch.full((STATE_FLOATS,), float(step))})


@pytest.mark.parametrize("name", ["checkpoints", "stages/1", "stages/2/end", "model"])
def test_a_file_where_a_folder_belongs_is_named_before_the_first_step(tmp_path, name):
    folder = folder_at(tmp_path)
    config = load_recipe(ROOT / "configs" / "demo.yaml").config
    folder.describe(config, {})
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / "stages").mkdir(exist_ok=True)
    (tmp_path / "stages" / "notes.txt").touch()  # a user's, which is in nobody's way
    with pytest.raises(EnvironmentProblem, match=f"{name}: a file, where the run writes a folder"):
        folder.describe(config, {})
    (tmp_path / name).unlink()
    folder.describe(config, {})


@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_goes_on_without_its_disk_and_loses_nothing(volume, fault, caplog):
    break_it, mend_it, reason = FAULTS[fault]
    caplog.set_level(logging.WARNING)
    run_dir = volume.path / "one"
    run_dir.mkdir()
    folder = folder_at(run_dir)
    metrics = MetricsWriter(run_dir / "metrics.jsonl", 0)

    def step(number: int) -> None:
        metrics.write({"step": number, "time": 0.0, "text": "x" * 3000})
        assert folder.is_ready()
        folder.save_checkpoint(state_at(number), TrainingState(number))
        assert folder.wait()

    def checkpoints() -> list[str]:
        return sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))

    step(1)
    assert folder.writer.unwritten is None and checkpoints() == ["step_0000000001"]
    if fault != "full":
        metrics.close()  # else the volume is busy, as a disk that is lost never is
    break_it(volume)
    for number in (2, 3):
        step(number)
        assert reason in (folder.writer.unwritten or "")
    assert "the run goes on and tries again" in caplog.text
    if fault == "gone":
        assert list(volume.path.iterdir()) == []  # nothing was made under the mount point
    else:
        assert checkpoints() == ["step_0000000001"]
    mend_it(volume)
    step(4)
    assert folder.writer.unwritten is None and checkpoints() == ["step_0000000004"]
    assert "the disk is back" in caplog.text
    metrics.close()
    lines = list(read_lines(run_dir / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert not list(run_dir.rglob("*.partial"))


def test_tensorboard_goes_on_with_a_new_file(volume):
    pytest.importorskip("tensorboard")
    from mslt_ds.telemetry.tensorboard_sink import FOLDER, TensorboardSink

    run_dir = volume.path / "one"
    run_dir.mkdir()
    sink = TensorboardSink(run_dir, 0)
    sink.write({"step": 0, "time": 1.0, "loss": 1.0})
    sink.close()
    volume.detach()
    sink = replace_writer(sink)
    for step in (1, 2):
        with pytest.raises(FileNotFoundError):
            sink.write({"step": step, "time": 1.0, "loss": 1.0})
    assert list(volume.path.iterdir()) == []
    volume.attach()
    sink.write({"step": 3, "time": 1.0, "loss": 1.0})
    sink.close()
    assert len(list((run_dir / FOLDER).iterdir())) == 2


def replace_writer(sink):
    sink._writer = None  # as after an error
    return sink
