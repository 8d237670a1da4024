"""The job scripts under a real Slurm: two nodes, both GPU bindings, requeue, failure.

They need a Slurm of at least two nodes with (real or pretended) GPUs that `sbatch` reaches; a
stand-in for the training says what each task was given and stops on a signal as the training does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def slurm_answers() -> bool:
    if not shutil.which("sinfo"):
        return False
    answer = subprocess.run(["sinfo", "--noheader", "--format=%D"], capture_output=True, text=True)
    counts = [int(count) for count in answer.stdout.split()]
    return answer.returncode == 0 and max(counts, default=0) >= 2


pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(not slurm_answers(), reason="no Slurm of two nodes answers to sinfo"),
]

TRAINER = """
import os, signal, sys, time
told = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: told.append(number))
rank, restarts = int(os.environ["RANK"]), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES"]
print("task", *[f"{name}={os.environ.get(name)}" for name in names], flush=True)
if os.environ.get("TEST_FAIL") and rank == 1:
    time.sleep(2)
    sys.exit("error: rank 1 has failed")
for _ in range(1 if restarts else int(os.environ["TEST_SECONDS"])):
    time.sleep(1)
    if told:
        sys.exit(85)
print("finished", flush=True)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    # sbatch keeps to the folder it was called in; the log lies there too.
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "mslt_ds").mkdir()
    (tmp_path / "mslt_ds" / "train.py").write_text(TRAINER)
    return tmp_path


def submit(checkout: Path, *options: str, **environment: str) -> str:
    """Submit pretrain_large.sh for two nodes of two tasks; the job's id."""
    command = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1"]
    answer = subprocess.run(
        [*command, "--time=20", "--job-name=test", *options, "slurm/pretrain_large.sh"],
        cwd=checkout,
        env=os.environ | {"MSLT_VENV": sys.prefix, "TEST_SECONDS": "60"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.strip()


def state(job: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    found = re.search(r"JobState=(\w+)", shown.stdout)
    return found[1] if found else "GONE"


def wait_for(job: str, *states: str) -> str:
    deadline = time.monotonic() + 90
    while (now := state(job)) not in states:
        assert time.monotonic() < deadline, f"job {job} is {now}, not {states}"
        time.sleep(0.5)
    return now


def log(checkout: Path, job: str) -> str:
    return (checkout / f"test-{job}.log").read_text()


def wait_for_tasks(checkout: Path, job: str) -> None:
    deadline = time.monotonic() + 60
    while not (checkout / f"test-{job}.log").exists() or log(checkout, job).count(": task ") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("binding", "devices"),
    [
        (["--gpus-per-node=2"], {"0,1"}),
        (["--gpus-per-node=0", "--gpus-per-task=1"], {"0", "1"}),
    ],
    ids=["all-visible", "one-per-task"],
)
def test_tasks_on_two_nodes(checkout: Path, binding: list[str], devices: set[str]) -> None:
    job = submit(checkout, *binding, TEST_SECONDS="1")
    assert wait_for(job, "COMPLETED", "FAILED") == "COMPLETED"
    text = log(checkout, job)
    tasks = re.findall(
        r"task RANK=(\d) WORLD_SIZE=4 LOCAL_RANK=(\d) MASTER_ADDR=(\S+) CUDA_VISIBLE_DEVICES=(\S+)",
        text,
    )
    assert sorted((rank, local) for rank, local, _, _ in tasks) == [
        ("0", "0"), ("1", "1"), ("2", "0"), ("3", "1"),
    ]  # fmt: skip
    assert len({address for _, _, address, _ in tasks}) == 1
    assert {visible for _, _, _, visible in tasks} == devices


def test_the_warning_requeues_and_the_job_finishes(checkout: Path) -> None:
    job = submit(checkout, "--gpus-per-node=2")
    wait_for_tasks(checkout, job)
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], check=True)
    wait_for(job, "PENDING", "COMPLETING")
    assert wait_for(job, "COMPLETED", "FAILED") == "COMPLETED"
    text = log(checkout, job)
    assert "goes back into the queue" in text
    assert text.count("finished") == 4


def test_a_failing_rank_fails_the_job_with_its_message(checkout: Path) -> None:
    job = submit(checkout, "--gpus-per-node=2", TEST_FAIL="1")
    assert wait_for(job, "COMPLETED", "FAILED") == "FAILED"
    text = log(checkout, job)
    assert "error: rank 1 has failed" in text
    assert text.count("job " + job + ", start") == 1


def test_a_cancelled_job_stays_cancelled(checkout: Path) -> None:
    job = submit(checkout, "--gpus-per-node=2")
    wait_for_tasks(checkout, job)
    subprocess.run(["scancel", job], check=True)
    assert wait_for(job, "CANCELLED", "PENDING", "COMPLETED") == "CANCELLED"
