"""`slurm`: a running Slurm of the tests' own. `jobs`: what a user does with it, by the same commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.slurm.sandbox import Sandbox, Unavailable, running

ROOT = Path(__file__).parents[2]
_OTHERS = ("SLURM", "MSLT", "MASTER", "NCCL", "GLOO", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Sandbox]:
    try:
        with running() as sandbox:
            yield sandbox
    except Unavailable as problem:
        pytest.skip(f"no Slurm for tests: {problem}")


@dataclass
class Jobs:
    """Submits jobs, whose logs and names are in `folder`, and watches them."""

    slurm: Sandbox
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_OTHERS)}
        ours = {"MSLT_VENV": sys.prefix, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        return inherited | self.slurm.environment | ours | more

    def submit(self, *words: str, cwd: Path = ROOT, **environment: str) -> str:
        """`sbatch words`; the job's id."""
        output = f"--output={self.folder}/%j.log"
        command = ["sbatch", "--parsable", "--time=20", output, *words]
        done = subprocess.run(
            command, cwd=cwd, env=self.environment(**environment), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        shown = self.slurm.command("scontrol", "show", "job", job, check=False)
        found = re.search(r"JobState=(\w+)", shown)
        return found[1] if found else "GONE"

    def log(self, job: str) -> str:
        path = self.folder / f"{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, job: str, *states: str, seconds: float = 900) -> str:
        """Wait until the job is in one of `states`; by default, until it has ended."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE")
        return self.until(
            lambda: now if (now := self.state(job)) in (states or ended) else "",
            f"{' or '.join(states or ended)}",
            job,
            seconds,
        )

    def until(self, ready, what: str, job: str, seconds: float = 900):
        """Wait until `ready()` is true, and return what it gave."""
        deadline = time.monotonic() + seconds
        while not (value := ready()):
            assert time.monotonic() < deadline, (
                f"job {job} is {self.state(job)} after {seconds:.0f} s, without {what}:\n"
                f"{self.log(job)[-3000:]}"
            )
            time.sleep(0.2)
        return value

    def trainers(self, job: str) -> dict[int, psutil.Process]:
        """The training processes of a job on this machine, by rank."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            with suppress(psutil.Error):
                if "mslt_ds/train.py" not in (process.info["cmdline"] or [])[1:2]:
                    continue
                seen = process.environ()
                if seen.get("SLURM_JOB_ID") == job and seen.get("SLURM_CONF") == self.conf:
                    found[int(seen["RANK"])] = process
        return found

    @property
    def conf(self) -> str:
        return self.slurm.environment["SLURM_CONF"]

    @contextmanager
    def frozen(self, job: str) -> Iterator[list[psutil.Process]]:
        """No step is made while it lasts, however fast the machine is; signals wait."""
        processes = list(self.trainers(job).values())
        for process in processes:
            process.suspend()
        try:
            yield processes
        finally:
            for process in processes:
                with suppress(psutil.Error):
                    process.resume()

    def signal(self, job: str, *options: str) -> None:
        self.slurm.command("scancel", *options, job)


@pytest.fixture
def jobs(slurm: Sandbox, tmp_path: Path) -> Jobs:
    return Jobs(slurm, tmp_path)


@pytest.fixture(scope="module")
def module_jobs(slurm: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """`jobs` for a module's fixtures."""
    return Jobs(slurm, tmp_path_factory.mktemp("jobs"))
