"""Which process a command began with, and what is told of the first steps."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from mslt_ds.telemetry.waits import Waits, _is_launcher, command_start


@pytest.mark.parametrize(
    ("command", "is_launcher"),
    [
        ("/env/bin/python /env/bin/deepspeed --num_gpus 2 mslt_ds/train.py", True),
        ("/env/bin/python -u -m deepspeed.launcher.launch --world_info=x", True),
        ("python -m torch.distributed.run --nproc-per-node=2 mslt_ds/train.py", True),
        ("torchrun --nproc-per-node=2 mslt_ds/train.py", True),
        ("python mslt_ds/train.py --config deepspeed.yaml", False),
        ("python -m pytest tests/deepspeed", False),
        ("", False),
    ],
)
def test_launchers(command, is_launcher):
    assert _is_launcher(command.split()) is is_launcher
    # A shell whose script calls it may have run for days.
    assert not _is_launcher(["bash", "-c", command])


def test_without_a_launcher_the_command_is_the_process():
    program = "from mslt_ds.telemetry.waits import *; print(command_start(), psutil.Process().create_time())"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    command, process = map(float, out.stdout.split())
    assert command == process and time.time() - 600 < command <= time.time()


def test_first_and_last_steps():
    waits = Waits()
    before = time.time()
    first = waits.first_step()
    assert first["since"] == "command"
    since = time.time() - before
    assert 0 <= first["seconds"] - (before - command_start()) + 1e-3 <= since + 2e-3
    assert psutil.Process().create_time() >= command_start()
    waits.last_step()
    second = waits.first_step()
    assert second["since"] == "last_step" and 0 <= second["seconds"] <= time.time() - before
