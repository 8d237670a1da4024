"""Process 1 of the images, in a process namespace of its own where the system allows one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ENTRYPOINT = Path(__file__).parents[3] / "docker/entrypoint.py"
RANK = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(85)))
print("ready", flush=True)
time.sleep(60)
"""
# Has no handler, as the one of DeepSpeed's two processes that a user starts.
LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode)
"""
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


def in_namespace() -> tuple[str, ...]:
    if shutil.which("unshare") and not subprocess.run([*NAMESPACE, "true"], check=False).returncode:
        return NAMESPACE
    return ()


@pytest.mark.parametrize("name", ["deepspeed", "script.py"])
def test_a_signal_reaches_the_ranks_and_their_exit_code_is_the_containers(tmp_path, name):
    if name == "script.py" and not in_namespace():
        pytest.skip("no process namespaces here: orphans have another process 1")
    launcher = tmp_path / name
    launcher.write_text(LAUNCHER)
    process = subprocess.Popen(
        [*in_namespace(), sys.executable, str(ENTRYPOINT), sys.executable, str(launcher), RANK],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    entrypoints = [
        found
        for found in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]
        if str(ENTRYPOINT) == found.cmdline()[1]  # unshare itself waits outside
    ]
    entrypoints[0].send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert output == "saved\n"
    # A script without a handler ends by the signal; the rank that it started has saved all the same.
    assert process.returncode == (85 if name == "deepspeed" else 128 + signal.SIGTERM)


def test_what_is_no_program_is_a_command_of_mslt_ds():
    done = subprocess.run(
        [sys.executable, str(ENTRYPOINT), "--version"],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": str(Path(sys.executable).parent)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("mslt-ds")
