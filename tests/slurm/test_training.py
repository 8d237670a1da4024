"""A training job's life on two nodes: the script that users submit, and the real trainer.

One job is warned, requeued, and loses a node, and must end with the weights of one that was left
alone, bit for bit.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import psutil
import pytest
import torch

from mslt_ds.distributed.signals import SIGNALS
from tests.distributed.recipes import recipe, weights_at
from tests.slurm.conftest import Jobs
from tests.slurm.sandbox import NODES

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")


def write_recipe(folder: Path, store: Path, name: str) -> str:
    content = recipe(
        store,
        folder / "runs",
        name,
        plan={"steps_per_stage": 250, "joint_steps": 200},
        checkpoint={"every_steps": 100},
        telemetry={"log_every_steps": 10},
    )
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))
    return str(path)


def steps_done(folder: Path, name: str) -> int:
    """The last step that the run has logged."""
    path = folder / "runs" / name / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = [json.loads(line).get("step", 0) for line in lines if line.endswith("}")]
    return max(steps, default=0)


def starts(jobs: Jobs, job: str) -> int:
    return jobs.log(job).count(f"job {job}, start ")


def warned(process: psutil.Process) -> bool:
    """Whether a signal that stops the training waits for the frozen process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    pending = int(re.search(r"ShdPnd:\s*(\w+)", status)[1], 16)  # pyright: ignore
    return any(pending >> (number - 1) & 1 for number in SIGNALS)


def test_a_job_with_a_hard_life_ends_as_one_without(jobs: Jobs, store: Path) -> None:
    def begin(start: int, why: str) -> None:
        jobs.until(lambda: starts(jobs, job) >= start, f"start {start}, after {why}", job)

    def train_on() -> None:
        start, before = starts(jobs, job), steps_done(jobs.folder, "hard")
        jobs.until(
            lambda: starts(jobs, job) > start or steps_done(jobs.folder, "hard") > before + 9,
            f"steps after {before}",
            job,
        )

    # The limit is two minutes away when the job starts: the warning comes with the first look that
    # slurmctld takes at it, within half a minute.
    soon = ("--time=2", "--signal=B:USR1@120")
    recipe_path = write_recipe(jobs.folder, store, "hard")
    job = jobs.submit(*TWO_NODES, *soon, "slurm/pretrain_base.sh", MSLT_RECIPE=recipe_path)
    # One that nothing happens to, in the time that the other waits.
    recipe_path = write_recipe(jobs.folder, store, "alone")
    alone = jobs.submit(*TWO_NODES, "slurm/pretrain_base.sh", MSLT_RECIPE=recipe_path)

    begin(1, "its submission")
    train_on()
    if starts(jobs, job) == 1:
        with jobs.frozen(job) as processes:
            jobs.until(lambda: all(map(warned, processes)), "the time limit's warning", job)
    begin(2, "the time limit's warning")
    jobs.slurm.command("scontrol", "update", f"jobid={job}", "timelimit=20")

    train_on()
    with jobs.frozen(job) as processes:
        jobs.signal(job, "--signal=USR1", "--batch")
        jobs.until(lambda: all(map(warned, processes)), "a warning by hand", job)
    begin(3, "a warning by hand")
    assert jobs.log(job).count("stopped with a checkpoint; goes back into the queue") == 2

    train_on()
    with jobs.frozen(job):
        jobs.slurm.command("scontrol", "requeue", job)
    begin(4, "scontrol requeue")

    assert jobs.wait(alone) == "COMPLETED", jobs.log(alone)
    assert starts(jobs, alone) == 1
    assert f"rendezvous {NODES[0]}:" in jobs.log(alone)

    train_on()
    with jobs.frozen(job):
        jobs.slurm.kill_node(NODES[1])
    jobs.wait(job, "PENDING")
    jobs.slurm.command("scontrol", "hold", job)
    jobs.slurm.revive(NODES[1])
    jobs.slurm.wait_for_nodes()
    jobs.slurm.wait_for_messages()
    jobs.slurm.command("scontrol", "release", job)
    assert jobs.wait(job) == "COMPLETED", jobs.log(job)
    assert starts(jobs, job) >= 5
    assert re.search("a node doesn't answer|NODE FAILURE", jobs.log(job))

    for folder in ("stages/1/end", "stages/2/end", "model"):
        expected = weights_at(jobs.folder / "runs" / "alone", folder)
        found = weights_at(jobs.folder / "runs" / "hard", folder)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), (folder, name)
