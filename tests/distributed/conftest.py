"""`launch`: run a script as several real processes, the way a user would, and clean up after it."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.forked import ForkedScript

GRACE_SECONDS = 10.0  # for what the ranks that didn't fail have to say
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Launched:
    """What a launched command left behind."""

    returncode: int
    output: str
    """stdout and stderr of all processes, together."""


Launch = Callable[..., Launched]
Process = subprocess.Popen[bytes] | ForkedScript

# Below those that the system gives out, from which another process would take one before it is used.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_PORTS = itertools.count(10_000 + 9_000 * (_WORKER % 2) + 37 * os.getpid() % 8_000)


def free_port() -> int:
    """A port that no other test is given."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


def _commands(
    launcher: str, script: str, arguments: tuple[str, ...], num_procs: int, port: int
) -> list[tuple[list[str], dict[str, str]]]:
    """One (command, extra environment) for each process that this machine has to start."""
    if launcher == "torchrun":
        options = [f"--nproc-per-node={num_procs}", f"--master-port={port}"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, script, *arguments]
        return [(command, {})]
    if launcher == "deepspeed":
        options = ["--num_gpus", str(num_procs), "--master_port", str(port)]
        command = [str(Path(sys.executable).with_name("deepspeed")), *options, script, *arguments]
        return [(command, {})]
    if launcher == "environment":  # what srun with one task for each process comes to
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(num_procs),
        }
        return [
            (
                [sys.executable, script, *arguments],
                {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(num_procs)
        ]
    raise ValueError(f"launcher {launcher!r}: torchrun, deepspeed or environment")


def _wait(processes: list[Process], timeout: float, until: Callable[[], bool] | None) -> bool:
    """Until all have ended, until that is so, or for a few seconds after one failed; False after `timeout` seconds."""
    end = time.monotonic() + timeout
    failed_at = None
    while any(process.poll() is None for process in processes):
        if until is not None and until():
            break
        now = time.monotonic()
        if failed_at is None and any(process.poll() for process in processes):
            failed_at = now
        if now > end:
            return False
        if failed_at is not None and now > failed_at + GRACE_SECONDS:
            break
        time.sleep(0.05)
    return True


def _kill(processes: list[Process]) -> None:
    """End the processes and everything that they started."""
    for process in processes:
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        # Children whose parent is gone are still in the session's group.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def launcher(folder: Path, extensions: Path) -> Launch:
    """`launch(script, num_procs, *arguments, timeout=..., env=..., launcher=..., until=..., check=True)`.

    Runs `script` (a path) in num_procs gloo processes of one thread each, on a free port.
    launcher: "environment" (default: RANK, WORLD_SIZE and the like set by hand, as srun does), "torchrun" or
    "deepspeed".
    As launchers do, a failed rank ends the others. Without launcher and `env`, the processes are forked from
    one that has imported everything. until: kill all of them as soon as this is so. With `check` (default) a
    failure fails the test and shows the output. Nothing that was started outlives the call.

    extensions: where operators are compiled
    """

    def run(
        script: str | Path,
        num_procs: int,
        *arguments: str,
        timeout: float = 600.0,
        env: Mapping[str, str] | None = None,
        launcher: str = "environment",
        until: Callable[[], bool] | None = None,
        check: bool = True,
        cwd: Path | None = None,
    ) -> Launched:
        environment = {
            key: value
            for key, value in os.environ.items()
            if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        }
        environment.update(
            DS_ACCELERATOR="cpu",
            OMP_NUM_THREADS="1",
            TORCH_EXTENSIONS_DIR=str(extensions),
            PYTHONPATH=os.pathsep.join(
                filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
            ),
        )
        environment.update(env or {})
        log = folder / f"launched-{len(list(folder.glob('launched-*')))}.log"
        port = free_port()
        processes: list[Process] = []
        timed_out = True
        with log.open("wb") as sink:
            try:
                for command, extra in _commands(launcher, str(script), arguments, num_procs, port):
                    given = {**environment, **extra}
                    if launcher == "environment" and not env:
                        processes.append(ForkedScript(command[1:], cwd or folder, given, log))
                        continue
                    processes.append(
                        subprocess.Popen(
                            command,
                            cwd=cwd or folder,
                            env=given,
                            stdout=sink,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
                timed_out = not _wait(processes, timeout, until)
            finally:
                _kill(processes)
        output = log.read_text(errors="replace")
        if timed_out:
            pytest.fail(f"{script} didn't end within {timeout} s:\n{output[-6000:]}")
        returncode = next((p.returncode for p in processes if p.returncode), 0)
        if check and returncode != 0:
            pytest.fail(f"{script} ended with {returncode}:\n{output[-6000:]}")
        return Launched(returncode, output)

    return run


@pytest.fixture(scope="session")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this run of the tests compiles operators.

    In the user's own folder, a process that was killed while it compiled leaves a lock that every
    later one waits for, for ever.
    """
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture
def launch(tmp_path: Path, extensions: Path) -> Launch:
    """See `launcher`."""
    return launcher(tmp_path, extensions)


@pytest.fixture(scope="module")
def module_launch(tmp_path_factory: pytest.TempPathFactory, extensions: Path) -> Launch:
    """`launch` for a module's fixtures."""
    return launcher(tmp_path_factory.mktemp("launched"), extensions)
