"""A lock on the folder of a run: one start at a time, also on a shared file system.

The lock is a file, `run.lock`, that names its owner. It is made by a hard link, which is atomic on NFS,
too, where O_EXCL and flock aren't on every server. Its owner touches it every few seconds: a heartbeat.

Whether an owner still lives is known for sure on its own machine, where its process can be looked up. Of
a process elsewhere only the heartbeat is seen. A second start watches it, by its own clock alone, since
the clocks of machines differ: where it beats once, the owner lives; where it is silent for STALE_SECONDS,
the owner is dead (a lost node, a container that was killed) and its lock is taken over.

Two starts may take over the same dead owner's lock at the same time. The one that writes last has it, and
the other finds that out: after SETTLE_SECONDS at its start, or, where it was stopped in between, before
it writes a checkpoint (`check`).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mslt_ds.errors import EnvironmentProblem, RunIsAliveError

NAME = "run.lock"
BEAT_SECONDS, STALE_SECONDS, SETTLE_SECONDS = 10.0, 60.0, 1.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    process_started: str | None
    """In ticks since the machine's boot; tells the process from a later one of the same number."""
    namespace: str
    """What a process number counts in, the machine's boot and the container; empty: not known."""
    job: str | None
    """The Slurm job."""
    since: str
    """Local time at which the lock was taken."""
    token: str
    """Different for each start."""

    @classmethod
    def this_process(cls, environment: Mapping[str, str]) -> Owner:
        return cls(
            socket.gethostname(),
            os.getpid(),
            _started(os.getpid()),
            _namespace(),
            environment.get("SLURM_JOB_ID"),
            time.strftime("%Y-%m-%d %H:%M:%S"),
            secrets.token_hex(8),
        )

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    def lives(self) -> bool | None:
        """Whether the process does; None where it can't be looked up from here."""
        if not self.namespace or self.namespace != _namespace():
            return None
        return self.process_started is not None and _started(self.pid) == self.process_started


_OWNER = TypeAdapter(Owner)


class RunLock:
    """This process's lock on `folder`. `held` takes and releases it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.path = folder / NAME
        self._owner = Owner.this_process(environment)
        self._own = folder / f".{NAME}.{self._owner.token}"
        self._released = threading.Event()

    @classmethod
    @contextmanager
    def held(cls, folder: Path, environment: Mapping[str, str]) -> Iterator[RunLock]:
        """Hold the lock; RunIsAliveError where another start holds it.

        Makes the folder and those above it, and leaves none of these behind empty. EnvironmentProblem
        where it can't be written.
        """
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = cls(folder, environment)
            lock._take()
        except OSError as error:
            raise EnvironmentProblem(
                f"output_dir: {folder} can't be written ({error.strerror or error}); free space, or "
                "choose another output_dir"
            ) from error
        heart = threading.Thread(target=lock._beat, name="mslt-lock", daemon=True)
        heart.start()
        try:
            yield lock
        finally:
            lock._released.set()
            heart.join(BEAT_SECONDS)
            with suppress(OSError):
                if lock._is_ours():
                    lock.path.unlink()
                for path in made or [folder]:
                    path.rmdir()  # fails where something is in it

    def check(self) -> None:
        """RunIsAliveError where another start has taken the lock over from this one."""
        found = None
        with suppress(OSError):  # the disk may be gone for a while, for everybody
            found = _read(self.path)
        if found is not None and found.token != self._owner.token:
            raise RunIsAliveError(
                f"{self.path.parent}: another start has taken this run over ({found}); this one had "
                "been silent for too long, and ends"
            )

    def _is_ours(self) -> bool:
        found = _read(self.path)
        return found is not None and found.token == self._owner.token

    def _take(self) -> None:
        self._own.write_text(json.dumps(asdict(self._owner)) + "\n", encoding="utf-8")
        try:
            while not self._link():
                found = _read(self.path)
                if not self._is_dead(found):
                    if not self.path.exists():
                        continue  # released meanwhile
                    raise RunIsAliveError(
                        f"{self.path.parent}: this run is alive ({found or 'its owner is not known'}); "
                        "wait for its end, or choose another name or output_dir"
                    )
                if _read(self.path) != found:
                    continue  # somebody was faster
                self._own.replace(self.path)
                time.sleep(SETTLE_SECONDS)
                if not self._is_ours():
                    raise RunIsAliveError(
                        f"{self.path.parent}: another start has just taken this run over "
                        f"({_read(self.path)}); wait for its end"
                    )
                logger.warning(
                    "%s: the lock of a dead process is taken over (%s)", self.path.parent, found
                )
                return
        finally:
            self._own.unlink(missing_ok=True)

    def _link(self) -> bool:
        """Give the lock its name; False where it is there already."""
        try:
            os.link(self._own, self.path)
        except FileExistsError:
            # Over NFS an answer can be lost, and the second try finds what the first one made.
            return self._own.stat().st_nlink == 2
        except OSError:  # a file system without hard links
            try:
                with self.path.open("x", encoding="utf-8") as file:
                    file.write(self._own.read_text(encoding="utf-8"))
            except FileExistsError:
                return False
        return True

    def _is_dead(self, owner: Owner | None) -> bool:
        """Whether the lock's owner is. Watches the heartbeat of one that can't be looked up."""
        lives = None if owner is None else owner.lives()
        if lives is not None:
            return not lives
        first = _heartbeat(self.path)
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            if _heartbeat(self.path) != first:
                return False
            time.sleep(min(1.0, STALE_SECONDS / 10))
        return True

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with suppress(OSError):
                if self._is_ours():
                    os.utime(self.path)


def _heartbeat(path: Path) -> tuple[int, int] | None:
    """Changes with each beat and each owner; None where there is no lock."""
    try:
        # Opening makes NFS ask the server instead of answering from a cache.
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _read(path: Path) -> Owner | None:
    """The owner of a lock; None where there is none, or none that can be read."""
    try:
        return _OWNER.validate_json(path.read_bytes(), strict=True)
    except (FileNotFoundError, ValidationError):
        return None


def _namespace() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the boot; None where it has ended. See proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
