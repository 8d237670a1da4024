"""A run is held by one living process, and a dead one holds it no longer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mslt_ds.disk import lock as module
from mslt_ds.disk.lock import NAME, Owner, RunLock
from mslt_ds.errors import EnvironmentProblem, RunIsAliveError

HOLD = """
import sys
from pathlib import Path
from mslt_ds.disk import lock
from mslt_ds.disk.lock import RunLock
from mslt_ds.errors import report, MsltError
lock.BEAT_SECONDS, lock.STALE_SECONDS, lock.SETTLE_SECONDS = 0.05, 1.0, 1.5
try:
    with RunLock.held(Path(sys.argv[1]), {"SLURM_JOB_ID": "77"}):
        print("held", flush=True)
        sys.stdin.read()
except MsltError as error:
    sys.exit(report(error))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.1)


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def elsewhere(folder: Path) -> Owner:
    """A lock of a process that can't be looked up from here, which beats only if the test does."""
    folder.mkdir(exist_ok=True)
    owner = replace(Owner.this_process({}), host="node7", namespace="another boot", token="its")
    (folder / NAME).write_text(json.dumps(asdict(owner)))
    return owner


def test_a_second_start_ends_with_its_code_and_one_line_and_the_next_one_begins(tmp_path):
    folder = tmp_path / "runs" / "one"
    first = start(folder)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    # A process that is stopped is alive: it may write again.
    first.send_signal(signal.SIGSTOP)
    second = start(folder)
    _, message = second.communicate()
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 6
    assert message.count("\n") == 1
    assert f"{folder}: this run is alive (process {first.pid} on " in message
    assert ", job 77, since 20" in message
    first.communicate("")
    assert first.returncode == 0
    assert not folder.exists()  # nothing was written into it
    with RunLock.held(folder, {}):
        assert [path.name for path in folder.iterdir()] == [NAME]


def test_a_killed_owner_is_noticed_at_once_and_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 600.0)
    first = start(tmp_path)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    first.kill()
    first.wait()
    with RunLock.held(tmp_path, {}):
        assert f"the lock of a dead process is taken over (process {first.pid} on" in caplog.text


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    owner = replace(Owner.this_process({}), process_started="1", token="its")
    (tmp_path / NAME).write_text(json.dumps(asdict(owner)))
    with RunLock.held(tmp_path, {}):
        pass


def test_an_owner_elsewhere_lives_as_long_as_its_heart_beats(tmp_path, monkeypatch):
    elsewhere(tmp_path)
    monkeypatch.setattr(module, "STALE_SECONDS", 600.0)  # ends with the first beat
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.3):
            os.utime(tmp_path / NAME)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(RunIsAliveError, match="on node7"), RunLock.held(tmp_path, {}):
            pass
    finally:
        ended.set()
        heart.join()
    monkeypatch.setattr(module, "STALE_SECONDS", 1.0)
    began = time.monotonic()
    with RunLock.held(tmp_path, {}):
        assert time.monotonic() - began >= module.STALE_SECONDS
        before = (tmp_path / NAME).stat().st_mtime_ns
        while (tmp_path / NAME).stat().st_mtime_ns == before:
            time.sleep(0.05)


def test_an_owner_elsewhere_that_lets_go_meanwhile(tmp_path, monkeypatch):
    elsewhere(tmp_path)
    monkeypatch.setattr(module, "STALE_SECONDS", 600.0)
    threading.Timer(0.3, (tmp_path / NAME).unlink).start()
    with RunLock.held(tmp_path, {}):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\0", "[" * 9999])
def test_a_lock_that_cant_be_read_goes_by_its_heartbeat(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with RunLock.held(tmp_path, {}):
        pass


@pytest.mark.parametrize(
    ("key", "value"), [("pid", "1\0"), ("pid", None), ("namespace", 7), ("process_started", [1])]
)
def test_values_of_other_types_are_no_owner(tmp_path, key, value):
    owner = asdict(Owner.this_process({}))
    (tmp_path / NAME).write_text(json.dumps(owner | {key: value}))
    with RunLock.held(tmp_path, {}):
        pass


def test_of_many_starts_at_once_one_holds_it(tmp_path):
    for _ in range(3):
        elsewhere(tmp_path)  # dead, so that all of them take it over
        starts = [start(tmp_path) for _ in range(4)]
        for one in starts:
            assert one.stdout is not None
            one.said = one.stdout.readline()  # pyright: ignore[reportAttributeAccessIssue]
        codes = [one.communicate("") and one.returncode for one in starts]
        assert sorted(codes) == [0, 6, 6, 6]


def test_who_was_taken_over_finds_out_before_it_writes(tmp_path):
    with RunLock.held(tmp_path, {}) as lock:
        lock.check()
        other = elsewhere(tmp_path)
        with pytest.raises(RunIsAliveError, match="another start has taken this run over .*node7"):
            lock.check()
        time.sleep(0.2)
    assert json.loads((tmp_path / NAME).read_text())["token"] == other.token  # not removed


def test_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with RunLock.held(tmp_path, {}):
        with pytest.raises(RunIsAliveError), RunLock.held(tmp_path, {}):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_folder_that_cant_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(EnvironmentProblem, match="output_dir: .*file/one can't be written"),
        RunLock.held(tmp_path / "file" / "one", {}),
    ):
        pass
