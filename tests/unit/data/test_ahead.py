import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from mslt_ds.data import ahead
from mslt_ds.errors import DataError

CPU = torch.device("cpu")


def nothing(_: int) -> None:
    pass


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_in_order_whoever_is_faster(num_workers: int):
    def make(step: int) -> int:
        time.sleep(0.01 * (step % 3 == 0))
        return step * step

    made = ahead.work_ahead(make, nothing, range(4, 24), num_workers, place="here", device=CPU)
    assert list(made) == [step * step for step in range(4, 24)]


def test_no_more_is_made_ahead_than_two_steps_for_each_worker():
    made: list[int] = []
    iterator = ahead.work_ahead(made.append, nothing, range(100), 2, place="here", device=CPU)
    next(iterator)
    time.sleep(0.2)
    assert len(made) <= 5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_slow_disk_is_named_with_the_time_waited(
    num_workers: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(ahead, "SLOW_SECONDS", 2.0)  # more than a busy machine takes for step 0

    def make(step: int) -> int:
        while step == 2 and "step 2" not in caplog.text:
            time.sleep(0.01)
        return step

    with caplog.at_level(logging.WARNING):
        made = ahead.work_ahead(make, nothing, range(4), num_workers, place="/disk", device=CPU)
        assert list(made) == [0, 1, 2, 3]
    assert "/disk: waited 2 s for the batch of step 2; is the disk slow?" in caplog.text
    assert "step 0" not in caplog.text


@pytest.fixture
def back() -> Iterator[threading.Event]:
    """Set when a disk that is gone is back: at the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_disk_that_is_gone_ends_the_run(
    num_workers: int, back: threading.Event, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ahead, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(ahead, "GONE_SECONDS", 0.15)
    monkeypatch.setattr(ahead, "CLOSE_SECONDS", 0.05)
    made = ahead.work_ahead(
        lambda step: back.wait(), nothing, range(4), num_workers, place="/disk", device=CPU
    )
    with pytest.raises(DataError, match="/disk: no batch for step 0 after 0 s"):
        next(made)


@pytest.mark.parametrize("hangs", ["another batch", "what is made ahead"])
def test_an_error_ends_the_run_though_another_read_hangs(
    hangs: str, back: threading.Event, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ahead, "CLOSE_SECONDS", 0.2)
    hanging = threading.Event()

    def hang(step: int) -> None:
        hanging.set()
        back.wait()

    def make(step: int) -> None:
        if step == 0:
            hanging.wait()
            raise OSError(5, "Input/output error")
        hang(step)

    make_ahead = hang if hangs == "what is made ahead" else nothing
    made = ahead.work_ahead(make, make_ahead, range(4), 2, place="/disk", device=CPU)
    started = time.monotonic()
    with pytest.raises(DataError, match="/disk: can't be read at step 0 .Input/output error"):
        next(made)
    assert time.monotonic() - started < 60  # the read hangs until the end of the test


def test_without_workers_nothing_is_made_that_isnt_asked_for():
    made: list[int] = []
    iterator = ahead.work_ahead(made.append, nothing, range(100), 0, place="here", device=CPU)
    next(iterator)
    next(iterator)
    time.sleep(0.1)
    assert made == [0, 1]


def test_a_disk_that_is_gone_holds_no_process():
    """A thread that waits for it forever doesn't keep the interpreter from ending."""
    program = """if True:
        import threading, torch
        from mslt_ds.data import ahead
        ahead.SLOW_SECONDS, ahead.GONE_SECONDS, ahead.CLOSE_SECONDS = 0.05, 0.1, 0.1
        never = threading.Event().wait
        cpu = torch.device("cpu")
        next(ahead.work_ahead(lambda _: never(), lambda _: never(), range(4), 2, place="/disk", device=cpu))
    """
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert "DataError: /disk: no batch for step 0" in ended.stderr
    assert ended.returncode == 1


def test_an_iterator_that_is_left_open_ends_with_the_process():
    program = """if True:
        import torch
        from mslt_ds.data import ahead
        cpu = torch.device("cpu")
        def make(step):
            return torch.ones(1000, 1000).sum()
        open_until_the_end = ahead.work_ahead(make, make, range(10**6), 2, place="here", device=cpu)
        next(open_until_the_end)
    """
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_timeout_of_the_batchs_own_is_an_error_like_any_other(monkeypatch: pytest.MonkeyPatch):
    def make(step: int) -> int:
        raise TimeoutError(110, "Connection timed out")

    made = ahead.work_ahead(make, nothing, range(4), 1, place="/disk", device=CPU)
    with pytest.raises(DataError, match="/disk: can't be read at step 0 .Connection timed out"):
        next(made)


def test_an_error_in_what_is_made_ahead_reaches_the_caller():
    failing = threading.Event()

    def fail(step: int) -> None:
        failing.set()
        raise OSError(28, "No space left on device")

    def make(step: int) -> int:
        failing.wait()
        return step

    # Noticed at a later step, however long the other thread takes to pass the error on.
    made = ahead.work_ahead(make, fail, range(10**7), 1, place="/disk", device=CPU)
    with pytest.raises(DataError, match="/disk: can't be read at step 0 .No space left"):
        list(made)
