"""slurm/common.sh with stand-ins for srun and scontrol: rendezvous, environment, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mslt_ds.distributed.signals import EXIT_CODE_STOPPED

SLURM = Path(__file__).parents[3] / "slurm"

# One task instead of many, its exit code that of the step.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$CALLS"
case " $* " in *" --overlap "*) echo "${TEST_PROBE:-}"; [ -z "${TEST_PROBE:-}" ]; exit ;; esac
while [ "$1" != bash ]; do shift; done
SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=16 SLURM_LOCALID=1 exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$CALLS"
[ "$1" != show ] || printf 'gpu07\\ngpu09\\n'
"""
# Writes what it was given, then waits for a signal if it is to.
TRAINER = """
import os, signal, sys, time
if os.environ.get("TEST_LATE"):
    print("task", flush=True)
    time.sleep(3)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(85))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))
names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"]
print("task", *[f"{name}={os.environ.get(name)}" for name in names], *sys.argv[1:], flush=True)
if os.environ.get("TEST_WAIT"):
    time.sleep(20)
sys.exit(int(os.environ.get("TEST_EXIT", "0")))
"""


class Job:
    """A job script as sbatch would start it, in a checkout of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = root / "calls"
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            program = root / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text)
            program.chmod(0o755)
        (root / "slurm").symlink_to(SLURM)
        (root / "mslt_ds").mkdir()
        (root / "mslt_ds" / "train.py").write_text(TRAINER)
        (root / "venv" / "bin").mkdir(parents=True)
        python = Path(sys.executable)
        (root / "venv" / "bin" / "python").symlink_to(python)

    def start(self, script: str = "pretrain_large.sh", **environment: str) -> subprocess.Popen[str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "MSLT", "MASTER", "NCCL", "GLOO"))
        }
        return subprocess.Popen(
            ["bash", str(SLURM / script)],
            env=inherited
            | {
                "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
                "CALLS": str(self.calls),
                "SLURM_JOB_ID": "4711",
                "SLURM_JOB_NODELIST": "gpu[07,09]",
                "SLURM_SUBMIT_DIR": str(self.root),
                "MSLT_VENV": str(self.root / "venv"),
            }
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **environment: str) -> tuple[int, str]:
        process = self.start(**environment)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def run_with_signal(self, number: signal.Signals, **environment: str) -> tuple[int, str]:
        process = self.start(TEST_WAIT="1", **environment)
        assert process.stdout is not None
        output = ""
        while "task" not in output:
            output += process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(number)
        rest, _ = process.communicate(timeout=300)
        return process.returncode, output + rest

    def requeued(self) -> bool:
        return "scontrol requeue 4711" in self.calls.read_text()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_each_task_knows_its_rank_and_the_rendezvous(job: Job) -> None:
    code, output = job.run()
    assert code == 0, output
    assert "RANK=3 WORLD_SIZE=16 LOCAL_RANK=1 MASTER_ADDR=gpu07 MASTER_PORT=16711" in output
    assert "--config configs/bert_large_mslt.yaml" in output
    assert "--kill-on-bad-exit=1" in job.calls.read_text()


def test_settings_reach_srun_and_the_training(job: Job) -> None:
    code, output = job.run(
        MSLT_RECIPE="other.yaml",
        MSLT_DATA="/data/with blank",
        MSLT_OUTPUT="/out",
        MSLT_ARGS="--set train.micro_batch_size=16",
        MSLT_INTERFACE="ib0",
        MSLT_SRUN_ARGS="--cpu-bind=cores",
        MASTER_ADDR="head",
        MASTER_PORT="12345",
        SLURM_CPUS_PER_TASK="4",
    )
    assert code == 0, output
    assert "MASTER_ADDR=head MASTER_PORT=12345 GLOO_SOCKET_IFNAME=ib0" in output
    assert (
        "--config other.yaml --set data.path=/data/with blank --set output_dir=/out "
        "--set train.micro_batch_size=16"
    ) in output
    assert "--cpus-per-task=4 --cpu-bind=cores" in job.calls.read_text()


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("MSLT_CONTAINER", "--container-image=image --container-mounts={root}:{root}"),
        ("MSLT_APPTAINER", "apptainer exec --nv --bind {root}:{root} --pwd {root} image"),
    ],
)
def test_containers(job: Job, variable: str, expected: str) -> None:
    job.run(**{variable: "image"}, TEST_EXIT="0")
    assert expected.format(root=job.root) in job.calls.read_text()


def test_the_warning_before_the_time_limit_requeues(job: Job) -> None:
    code, output = job.run_with_signal(signal.SIGUSR1)
    assert code == 0, output
    assert job.requeued()


def test_a_warning_that_comes_before_the_training_listens_is_repeated(job: Job) -> None:
    code, output = job.run_with_signal(signal.SIGUSR1, TEST_LATE="1")
    assert code == 0, output
    assert job.requeued()


def test_a_node_that_has_gone_requeues(job: Job) -> None:
    said = "srun: error: Task launch for StepId=7.1 failed on node gpu09: Communication failure"
    code, output = job.run(TEST_EXIT="1", TEST_PROBE=said)
    assert code == 0, output
    assert job.requeued() and "a node doesn't answer; goes back into the queue" in output
    assert said in output


def test_nodes_that_get_lost_again_and_again_end_the_job(job: Job) -> None:
    said = "srun: error: Task launch for StepId=7.1 failed on node gpu09: Communication failure"
    code, output = job.run(TEST_EXIT="1", TEST_PROBE=said, SLURM_RESTART_COUNT="20")
    assert code == 1, output
    assert not job.requeued()
    code, output = job.run(
        TEST_EXIT="1", TEST_PROBE=said, SLURM_RESTART_COUNT="20", MSLT_MAX_RESTARTS="21"
    )
    assert code == 0, output
    assert job.requeued()


def test_a_probe_that_srun_refuses_proves_nothing(job: Job) -> None:
    code, output = job.run(TEST_EXIT="1", TEST_PROBE="srun: error: Invalid TRES specification")
    assert code == 1, output
    assert not job.requeued()


def test_a_cancelled_job_is_not_requeued(job: Job) -> None:
    code, output = job.run_with_signal(signal.SIGTERM)
    assert code == EXIT_CODE_STOPPED, output
    assert not job.requeued()


@pytest.mark.parametrize("exit_code", [1, 2, EXIT_CODE_STOPPED])
def test_a_failing_task_fails_the_job_and_is_not_repeated(job: Job, exit_code: int) -> None:
    # Survivors of a failure are ended by TERM and may report EXIT_CODE_STOPPED for the whole step.
    code, output = job.run(TEST_EXIT=str(exit_code))
    assert code == exit_code, output
    assert not job.requeued()


def test_a_missing_checkout_or_environment_is_named(job: Job) -> None:
    code, output = job.run(MSLT_VENV="/nowhere")
    assert code == 3
    assert "MSLT_VENV: no environment in '/nowhere'; run make setup or set it" in output
    (job.root / "mslt_ds" / "train.py").unlink()
    code, output = job.run()
    assert code == 3
    assert "holds no mslt_ds/train.py" in output


def test_the_scripts_agree_with_the_trainer_on_the_exit_code() -> None:
    assert f"MSLT_STOPPED={EXIT_CODE_STOPPED}\n" in (SLURM / "common.sh").read_text()


def test_modules_that_read_unset_variables_are_loaded(job: Job) -> None:
    """As Lmod does; the scripts themselves run under `set -u`."""
    code, output = job.run(
        MSLT_MODULES="cuda gcc",
        **{"BASH_FUNC_module%%": '() { echo "loaded $* ${__LMOD_REF_COUNT_PATH}$LMOD_UNSET"; }'},
    )
    assert code == 0, output
    assert "loaded load cuda gcc" in output


def test_quotes_protect_blanks_in_arguments(job: Job) -> None:
    code, output = job.run(MSLT_ARGS="--set 'data.path=/with  two' --set b='$HOME *'")
    assert code == 0, output
    assert "--set data.path=/with  two --set b=$HOME *" in output
