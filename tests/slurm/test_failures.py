"""What ends a training job before its time: a rank's own failure, a kill, scancel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.slurm.conftest import Jobs
from tests.slurm.test_training import TWO_NODES, starts, steps_done, write_recipe

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = "slurm/pretrain_base.sh"
ONE_NODE = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")


def test_a_rank_that_fails_alone_fails_the_job_with_its_message(jobs: Jobs, store: Path) -> None:
    # Before the task starts, one of the two gets a rank that no task of this job can have.
    prolog = jobs.folder / "prolog.sh"
    prolog.write_text('#!/bin/sh\n[ "$SLURM_PROCID" = 0 ] || echo export SLURM_PROCID=7\n')
    prolog.chmod(0o755)
    job = jobs.submit(
        *TWO_NODES, SCRIPT,
        MSLT_RECIPE=write_recipe(jobs.folder, store, "run"),
        MSLT_SRUN_ARGS=f"--task-prolog={prolog}",
    )  # fmt: skip
    # Rank 0 alone would wait half an hour for the other one.
    assert jobs.wait(job, seconds=600) == "FAILED"
    log = jobs.log(job)
    assert "error: RANK=7 is not below WORLD_SIZE=2; start every process with a rank" in log
    assert "task 1: Exited with exit code 3" in log
    # srun's own code is that of the other one, which is told to stop while it waits for its partner.
    assert f"job {job}: tasks were ended, by a failing one (see above)" in log
    assert starts(jobs, job) == 1


def test_a_killed_rank_fails_the_job_and_the_same_command_goes_on(jobs: Jobs, store: Path) -> None:
    recipe_path = write_recipe(jobs.folder, store, "run")
    job = jobs.submit(*ONE_NODE, SCRIPT, MSLT_RECIPE=recipe_path)
    jobs.until(lambda: steps_done(jobs.folder, "run") > 100, "a checkpoint", job)
    jobs.trainers(job)[1].kill()
    assert jobs.wait(job, seconds=600) == "FAILED"
    assert "task 1: Killed" in jobs.log(job)
    assert starts(jobs, job) == 1

    again = jobs.submit(*ONE_NODE, SCRIPT, MSLT_RECIPE=recipe_path)
    before = steps_done(jobs.folder, "run")
    jobs.until(lambda: steps_done(jobs.folder, "run") > before, f"a step after {before}", again)
    jobs.signal(again)
    jobs.wait(again, "CANCELLED")
    # It was told to end, and said so when its checkpoint was written; it stays cancelled.
    jobs.until(
        lambda: '"event": "stopped"' in (jobs.folder / "runs/run/metrics.jsonl").read_text(),
        "a last checkpoint",
        again,
        seconds=300,
    )
    begun = re.search(r"stage 1/\d+: .* steps (\d+) to", jobs.log(again))
    assert begun and int(begun[1]) > 0, "it began anew"
    assert jobs.state(again) == "CANCELLED"
