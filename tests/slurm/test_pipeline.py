"""From text to scores by slurm/pipeline.sh, and an evaluating array that loses one of its tasks."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.distributed.recipes import recipe
from tests.slurm.conftest import ROOT, Jobs
from tests.text import write_text

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

GLUE = ("--tasks", "RTE", "--set", "seeds=[1]", "--set", "learning_rates=[5e-5,3e-5]",
        "--set", "batch_size=8", "--set", "epochs_of.RTE=1", "--set", "max_length=32")  # fmt: skip


def write_glue(folder: Path) -> None:
    """RTE in small: whether two sentences are the same."""
    (folder / "RTE").mkdir(parents=True)
    for split, count in (("train", 24), ("dev", 8)):
        lines = ["index\tsentence1\tsentence2\tlabel"]
        for index in range(count):
            same = index % 2 == 0
            second = "abc de" if same else "hij fab"
            label = "entailment" if same else "not_entailment"
            lines.append(f"{index}\tabc de\t{second}\t{label}")
        (folder / "RTE" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def start_pipeline(
    jobs: Jobs, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run slurm/pipeline.sh."""
    options = {
        "MSLT_SBATCH": f"--output={jobs.folder}/%A.log --time=10 --cpus-per-task=1",
        "MSLT_SBATCH_PRETRAIN": "--nodes=2 --ntasks-per-node=1 --gpus-per-node=1",
        "MSLT_DATA": str(jobs.folder / "store"),
        "MSLT_OUTPUT": str(jobs.folder / "runs"),
        "MSLT_PREPARERS": "2",
        "MSLT_EVALUATORS": "2",
    }
    return subprocess.run(
        ["bash", "slurm/pipeline.sh", *arguments], cwd=ROOT,
        env=jobs.environment(**options | settings), capture_output=True, text=True,
    )  # fmt: skip


def submit_pipeline(jobs: Jobs, *arguments: str, **settings: str) -> list[str]:
    """The ids of its jobs, all of them submitted."""
    done = start_pipeline(jobs, *arguments, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"(?:prepare|merge|pretrain|evaluate) (\d+)", done.stdout)


@pytest.fixture(scope="module")
def folder(module_jobs: Jobs, store: Path) -> Path:
    """Where the pipeline has left a store, a run and its scores."""
    jobs, folder = module_jobs, module_jobs.folder
    write_text(folder / "text.txt")
    write_glue(folder / "glue")
    content = recipe(store, folder, "named-by-the-pipeline",
                     plan={"steps_per_stage": 4, "joint_steps": 3})  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(content))
    ids = submit_pipeline(
        jobs, "--input", str(folder / "text.txt"), "--tokenizer", str(store),
        MSLT_RECIPE=str(folder / "recipe.yaml"), MSLT_GLUE=str(folder / "glue"),
        MSLT_GLUE_ARGS=" ".join(GLUE),
    )  # fmt: skip
    assert len(ids) == 4
    for job in ids:
        assert jobs.wait(job) == "COMPLETED", jobs.log(job)
    return folder


def test_the_pipeline_leads_from_text_to_scores(folder: Path) -> None:
    assert (folder / "store" / "manifest.json").exists()
    assert (folder / "runs" / "pipeline" / "model" / "config.json").exists()
    results = json.loads((folder / "runs" / "pipeline" / "glue" / "results.json").read_text())
    assert "RTE" in json.dumps(results)
    assert "RTE" in (folder / "runs" / "pipeline" / "glue" / "table.md").read_text()


def test_where_a_job_fails_those_after_it_never_start(jobs: Jobs, store: Path) -> None:
    ids = submit_pipeline(jobs, "--input", "/nowhere/text.txt", "--tokenizer", str(store))
    prepare, merge, pretrain = ids
    assert jobs.wait(prepare) == "FAILED"
    assert jobs.wait(merge) == "CANCELLED" and jobs.wait(pretrain) == "CANCELLED"
    assert "/nowhere/text.txt" in jobs.log(prepare)


def test_where_sbatch_refuses_a_job_those_before_it_are_cancelled(jobs: Jobs, store: Path) -> None:
    done = start_pipeline(
        jobs, "--input", "text.txt", "--tokenizer", str(store),
        MSLT_SBATCH=f"--job-name={jobs.folder.name} --hold --output={jobs.folder}/%A.log",
        MSLT_SBATCH_PRETRAIN="--partition=nowhere",
    )  # fmt: skip
    assert done.returncode != 0
    assert "sbatch refused the job PRETRAIN" in done.stderr
    shown = jobs.slurm.command("squeue", "--noheader", f"--name={jobs.folder.name}")
    assert shown == "", shown


def test_an_array_that_lost_a_task_is_finished_by_that_task_alone(folder: Path, jobs: Jobs) -> None:
    output = jobs.folder / "scores"
    arguments = ["--model", str(folder / "runs/pipeline/model"), "--data", str(folder / "glue"),
                 "--output", str(output), *GLUE]  # fmt: skip
    log = f"--output={jobs.folder}/%A.log"
    job = jobs.submit("--array=1-2", "--cpus-per-task=1", log, "slurm/evaluate_glue.sh", *arguments)

    def second_task() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            with suppress(psutil.Error):
                words = process.info["cmdline"] or []
                if str(output) in words and "2/2" in words and "mslt_ds.cli" in words[:4]:
                    return process
        return None

    jobs.until(second_task, "its second task", job).kill()
    assert jobs.wait(f"{job}_2") == "FAILED"
    assert jobs.wait(f"{job}_1") == "COMPLETED", jobs.log(job)
    assert not (output / "results.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in (output / "cells").glob("*.json")}
    assert len(finished) == 1

    again = jobs.submit(
        "--array=2", "--cpus-per-task=1", log, "slurm/evaluate_glue.sh", *arguments, MSLT_SHARDS="2"
    )
    assert jobs.wait(f"{again}_2") == "COMPLETED", jobs.log(again)
    assert (output / "results.json").exists() and (output / "table.md").exists()
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
