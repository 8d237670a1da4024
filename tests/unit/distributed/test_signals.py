"""Being told to stop, in processes of their own: nothing to lose, something to lose, a blocked main thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mslt_ds.distributed.launchers import launcher_name
from mslt_ds.distributed.signals import EXIT_CODE_INTERRUPTED, EXIT_CODE_STOPPED

ROOT = Path(__file__).parents[3]
BEGIN = """
import ctypes, os, sys, time
from mslt_ds.distributed import signals
signals._CLEAN_UP_SECONDS, signals._SECOND_INTERRUPT_SECONDS, signals._LOOK_SECONDS = 60, 2, 0.2
flag = signals.StopFlag()
def say(text): print(text, flush=True)
def block():  # as in a collective: a mutex that this thread holds already
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex), say("ready"), lock(mutex)
"""
IDLE = "try:\n    say('ready'); time.sleep(60)\nfinally:\n    say('cleaned up')"
HELD = """
flag.hold()
say("ready")
while not flag.is_set: time.sleep(0.01)
say(f"saved because of {flag.reason}")
flag.release()
say("went on")
"""


def start(code: str, *command: str) -> subprocess.Popen[str]:
    """A process that runs `code` after BEGIN and has said that it's ready."""
    process = subprocess.Popen(
        [*(command or (sys.executable, "-c")), BEGIN + code],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_with_nothing_to_lose_it_cleans_up_and_ends(number):
    process = start(IDLE)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert (process.returncode, output) == (EXIT_CODE_STOPPED, "cleaned up\n")


def test_with_something_to_lose_it_is_saved_first():
    process = start(HELD)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert (process.returncode, output) == (EXIT_CODE_STOPPED, "saved because of SIGTERM\n")


def test_it_ends_also_where_the_main_thread_is_blocked():
    process = start("signals._CLEAN_UP_SECONDS = 0.2; block()")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == EXIT_CODE_STOPPED


def test_a_second_ctrl_c_ends_it_whatever_there_is_to_lose():
    process = start("flag.hold(); block()")
    for _ in range(3):  # the second follows at once, as a launcher passes it on
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    time.sleep(0.4)
    assert process.poll() is None
    while process.poll() is None:  # which may have been busy before it took the time of the first
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
    assert process.returncode == EXIT_CODE_INTERRUPTED


def test_the_end_of_its_launcher_is_a_reason_to_stop(tmp_path):
    launcher = tmp_path / "torchrun"
    launcher.write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1]])"
    )
    process = start(HELD, sys.executable, str(launcher))
    process.kill()
    output, _ = process.communicate(timeout=300)  # until the rank has closed it
    assert output == "saved because of the end of its launcher (torchrun)\n"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/opt/bin/python3.11 /opt/bin/deepspeed --num_gpus 2 train.py", "deepspeed"),
        ("python -u -m deepspeed.launcher.launch --world_info=x", "deepspeed.launcher.launch"),
        ("/usr/bin/python -m torch.distributed.run train.py", "torch.distributed.run"),
        ("slurmstepd: [12.0]", "slurmstepd"),
        ("python -u mslt_ds/train.py --config deepspeed", None),
        ("timeout 500 deepspeed train.py", None),
        ("bash -c torchrun", None),
        ("", None),
    ],
)
def test_a_launcher_is_known_by_its_command_line(command, name):
    found = command.split()
    if command.startswith("slurmstepd"):
        found = [command]
    assert launcher_name(found) == name
