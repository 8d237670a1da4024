"""A few faults at random moments; `make chaos` makes many, and prints the table of docs/reliability.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_survives_faults_and_ends_in_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "tests.chaos.faults", "--faults", "4", "--cases", "lamb-zero1"]
    command += ["--hang-seconds", "30"]  # a busy machine may let nothing run for 10
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "chaos")],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "4 faults, all survived" in done.stdout
