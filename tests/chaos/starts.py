"""Starts of a run on two ranks, as srun would make them, in processes forked from one that has imported all."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tests.loaded  # isort: skip  # noqa: F401, before torch, and so that no rank has to

import torch

from mslt_ds import cli
from tests.distributed.conftest import free_port
from tests.planted import plant

RANKS = 2


class Start:
    """The ranks of one start of the run of `config`.

    spoils: the first instances of batches in which the last rank's gradient is made infinite
    """

    def __init__(self, config: Path, run_dir: Path, spoils: Sequence[int] = ()) -> None:
        self.config, self.log, self.run_dir = config, config.with_suffix(".log"), run_dir
        self.spoils = spoils
        self.begin()

    def begin(self) -> None:
        """Start all ranks; again, where they have ended."""
        self._began, self._log_began = time.time(), self._log_size()
        port = str(free_port())
        self.pids = [self._fork(rank, port) for rank in range(RANKS)]
        self.codes: dict[int, int] = {}

    def _fork(self, rank: int, port: str) -> int:
        if pid := os.fork():
            return pid
        code = 1
        try:
            sink = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            torch.set_num_threads(1)
            if rank == RANKS - 1:
                plant(lambda first: "gradient" if first in self.spoils else "none")
            code = cli.main(["train", "--config", str(self.config)])
            sys.stdout.flush()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    @property
    def said(self) -> str:
        """What was printed since the ranks were started."""
        with self.log.open("rb") as file:
            file.seek(self._log_began)
            return file.read().decode(errors="replace")

    @property
    def trains(self) -> bool:
        """Whether metrics were written since the ranks were started: they have joined."""
        metrics = self.run_dir / "metrics.jsonl"
        return metrics.exists() and metrics.stat().st_mtime > self._began

    def running(self) -> list[int]:
        """The ranks that haven't ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank in range(RANKS) if rank not in self.codes]

    def wait(self, seconds: float) -> bool:
        """Whether all ranks have ended within `seconds`."""
        return self.wait_until(lambda: not self.running(), seconds)

    @staticmethod
    def wait_until(condition: Callable[[], object], seconds: float) -> bool:
        """Whether `condition` has come true within `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def signal(self, number: signal.Signals, ranks: Sequence[int] = range(RANKS)) -> None:
        for rank in ranks:
            if rank in self.running():
                os.kill(self.pids[rank], number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.wait(30), "killed ranks don't end"


@contextmanager
def started(config: Path, run_dir: Path, spoils: Sequence[int] = ()) -> Iterator[Start]:
    start = Start(config, run_dir, spoils)
    try:
        yield start
    finally:
        start.kill()
