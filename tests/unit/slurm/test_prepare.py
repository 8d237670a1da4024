"""slurm/prepare.sh with a stand-in for srun: each task of the array makes its part."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import pytest

from mslt_ds.data.prepare import command
from mslt_ds.shard import Shard

SLURM = Path(__file__).parents[3] / "slurm"
SRUN = '#!/usr/bin/env bash\nwhile [ "$1" != bash ]; do shift; done\nexec "$@"\n'
PYTHON = '#!/usr/bin/env bash\nprintf "%s\\n" "$@" >"$CALLS"\nexit "${TEST_EXIT:-0}"\n'
GIVEN = ("--input", "a.xz", "b.xz", "--output", "store", "--tokenizer", "vocabulary")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {"bin/srun": SRUN, "venv/bin/python": PYTHON}.items():
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.write_text(text)
        program.chmod(0o755)
    (tmp_path / "slurm").symlink_to(SLURM)
    (tmp_path / "mslt_ds").mkdir()
    (tmp_path / "mslt_ds" / "train.py").touch()
    return tmp_path


def run(
    root: Path, given: tuple[str, ...] = GIVEN, **environment: str
) -> tuple[int, str, list[str]]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MSLT"))}
    settings = {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(root / "calls"),
        "SLURM_JOB_ID": "12",
        "SLURM_SUBMIT_DIR": str(root),
        "SLURM_CPUS_PER_TASK": "6",
        "MSLT_VENV": str(root / "venv"),
    }
    process = subprocess.run(
        ["bash", str(SLURM / "prepare.sh"), *given],
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
    )
    calls = (root / "calls").read_text().splitlines() if (root / "calls").exists() else []
    return process.returncode, process.stderr, calls


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "8"}, Shard(3, 8)),
        (
            {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "3", "MSLT_SHARDS": "8"},
            Shard(3, 8),
        ),
    ],
)
def test_a_task_makes_its_part_with_all_its_cores(root: Path, environment, shard: Shard) -> None:
    code, error, calls = run(root, GIVEN, **environment)
    assert code == 0, error
    assert calls[:3] == ["-m", "mslt_ds.cli", "prepare"]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args(calls[3:])
    assert Shard.parse(arguments.shard) == shard
    assert arguments.workers == 6
    assert arguments.input == ["a.xz", "b.xz"] and arguments.tokenizer == "vocabulary"


def test_a_failure_is_the_tasks(root: Path) -> None:
    environment = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "2", "TEST_EXIT": "2"}
    assert run(root, GIVEN, **environment)[0] == 2


def test_a_job_that_is_no_array_says_so(root: Path) -> None:
    code, error, calls = run(root)
    assert code == 3 and "sbatch --array=1-N" in error and calls == []


def test_the_parts_are_put_together_by_one_task(root: Path) -> None:
    environment = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "1"}
    code, error, calls = run(root, ("--merge", "--output", "store"), **environment)
    assert code == 0, error
    assert calls == ["-m", "mslt_ds.cli", "prepare", "--merge", "--output", "store"]
