"""A Slurm of its own for the tests: munged, slurmctld and two slurmd on the loopback of one machine.

    python tests/slurm/sandbox.py             start one, print how to reach it, stop it on Ctrl-C

It needs no systemd, no cgroups and no container. Debian builds Slurm so that several slurmd run on one
host, told apart by name and port; GPUs are pretended (links to /dev/null, which Slurm counts and hands
out by CUDA_VISIBLE_DEVICES without looking at them). All files are in one temporary folder, and what
is ended at the end is what was started here: children of this process, by their ids.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NODES = ("mslt-node0", "mslt-node1")
GPUS = 8
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
HOSTS = Path("/etc/hosts")
MARK = "# a Slurm for tests"


class Unavailable(Exception):
    """What this machine lacks for a Slurm of its own."""


def install() -> None:
    """Install what is missing, from Debian's packages. Unavailable, with the reason, if it can't."""
    if os.getuid() != 0:
        raise Unavailable("a Slurm for tests is started by root")
    if not missing_programs():
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"{', '.join(missing_programs())} not found, and no apt-get to install")
    # Debian's packages start their services on installation unless this file says no.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        options = ["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
        update = subprocess.run(["apt-get", "update", "-qq"], capture_output=True, text=True)
        done = subprocess.run(
            ["apt-get", "install", *options, *PACKAGES],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        if ours:
            policy.unlink()
    if missing_programs():
        said = (update.stderr + done.stderr).strip().splitlines()[-3:]
        raise Unavailable(f"apt-get can't install {', '.join(PACKAGES)}: {' / '.join(said)}")


def missing_programs() -> list[str]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [program for program in PROGRAMS if not shutil.which(program, path=path)]


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def slurm_conf(folder: Path, controller: int, daemons: Mapping[str, int]) -> str:
    """The configuration. Times are short, so that failures are noticed in seconds."""
    host = socket.gethostname()
    # With it, daemons bind to the address of the host's name alone: loopback, where that is one.
    loopback = ""
    with suppress(OSError):
        if socket.gethostbyname(host).startswith("127."):
            loopback = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
    lines = f"""
ClusterName=tests
SlurmctldHost={host.split(".")[0]}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job is held back for as long as its credential lives: 120 s by default, at least 5.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
JobRequeue=1
KillWait=10
SlurmdTimeout=8
MessageTimeout=5
BatchStartTimeout=20
InactiveLimit=0
MinJobAge=86400
ReturnToService=2
MailProg=/bin/true
{loopback}
PartitionName=tests Nodes={",".join(daemons)} Default=YES MaxTime=INFINITE State=UP
"""
    for name, port in daemons.items():
        lines += (
            f"NodeName={name} NodeHostName=localhost NodeAddr=127.0.0.1 Port={port} CPUs=64 "
            f"Sockets=1 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=500000 Gres=gpu:{GPUS}\n"
        )
    return lines


@dataclass
class Sandbox:
    """A running Slurm; `environment` makes its commands reach it."""

    folder: Path
    ports: dict[str, int]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def command(self, *words: str, check: bool = True) -> str:
        """Run one of Slurm's commands; what it printed."""
        done = subprocess.run(
            words, env=os.environ | self.environment, capture_output=True, text=True, timeout=300
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                # Where this process is killed and can't end them, the kernel does.
                ["setpriv", "--pdeathsig", "KILL", *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=os.environ | self.environment, cwd=self.folder,
            )  # fmt: skip

    def start(self) -> None:
        folder = self.folder
        for name in ("state", "dev", *(f"spool.{node}" for node in NODES)):
            (folder / name).mkdir()
        for index in range(GPUS):
            (folder / "dev" / f"nvidia{index}").symlink_to("/dev/null")
        controller = self.ports["slurmctld"]
        daemons = {node: self.ports[node] for node in NODES}
        (folder / "slurm.conf").write_text(slurm_conf(folder, controller, daemons))
        (folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={','.join(NODES)} Name=gpu File={folder}/dev/nvidia[0-{GPUS - 1}]\n"
        )
        key = folder / "munge.key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(128))
        self._start(
            "munged", "munged", "--foreground", "--force", "--origin=127.0.0.1",
            f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        )  # fmt: skip
        self._wait(lambda: (folder / "munge.socket").exists(), "munged's socket")
        self._start("slurmctld", "slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        for node in NODES:
            self.revive(node)
        self.wait_for_nodes()

    def revive(self, node: str) -> None:
        """Start the slurmd of `node`."""
        self._start(node, "slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", node)

    def nodes_up(self) -> int:
        states = self.command("sinfo", "--noheader", "-N", "-o", "%T", check=False).split()
        return sum(state in ("idle", "mixed", "allocated", "completing") for state in states)

    def wait_for_nodes(self) -> None:
        self._wait(lambda: self.nodes_up() == len(NODES), "the nodes")

    def wait_for_messages(self) -> None:
        """Wait until slurmctld has sent what it has to send: the order to end a job's tasks on a node that
        didn't answer reaches the node's next slurmd, and would end the tasks of the job's next start."""
        self._wait(
            lambda: (
                set(re.findall(r"Agent (?:queue size|count): +(\d+)", self.command("sdiag")))
                == {"0"}
            ),
            "the end of slurmctld's messages",
        )

    def _wait(self, ready, what: str, seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}"
                    for path in [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
                )
                raise Unavailable(f"no sign of {what} after {seconds:.0f} s\n{logs}")
            time.sleep(0.1)

    def _steps(self, node: str | None = None) -> list[psutil.Process]:
        """The slurmstepd processes of this sandbox, or of one node's, and all below them."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["name"]):
            if process.info["name"] != "slurmstepd":
                continue
            with suppress(psutil.Error):
                # It writes its own title over its environment; the log of its slurmd tells it apart.
                logs = {Path(file.path) for file in process.open_files()}
                wanted = NODES if node is None else (node,)
                if logs & {self.folder / f"slurmd.{name}.log" for name in wanted}:
                    found += [process, *process.children(recursive=True)]
        return found

    def kill_node(self, node: str) -> None:
        """As when its power fails: SIGKILL for the node's slurmd, its steps, and their processes."""
        daemon = self.daemons.pop(node)
        steps = self._steps(node)
        if not steps:
            raise RuntimeError(f"{node} runs no step that could be killed")
        daemon.kill()
        for process in steps:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        daemon.wait()

    def stop(self) -> None:
        """Cancel all jobs and end every process that was started here."""
        if "slurmctld" in self.daemons:
            with suppress(RuntimeError, subprocess.TimeoutExpired):
                jobs = self.command("squeue", "--noheader", "-o", "%A").split()
                if jobs:
                    self.command("scancel", "--signal=KILL", *jobs, check=False)
                    self.command("scancel", *jobs, check=False)
        steps = self._steps()
        # The controller first: it would wait for a slurmd that has gone.
        for name in ("slurmctld", *NODES, "munged"):
            daemon = self.daemons.pop(name, None)
            if daemon is None:
                continue
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in [*steps, *self._steps()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def _names_resolve() -> Iterator[None]:
    """The nodes' names in /etc/hosts: scripts take the first one as the address to meet at."""
    _write_hosts(f"127.0.0.1 {' '.join(NODES)} {MARK} {os.getpid()}")
    try:
        yield
    finally:
        _write_hosts()


def _write_hosts(*mine: str) -> None:
    """Leave out this process's line and those of processes that were killed; add `mine`."""
    kept = []
    for line in HOSTS.read_text().splitlines():
        owner = line.rpartition(f"{MARK} ")[2] if MARK in line else ""
        if not owner or (int(owner) != os.getpid() and psutil.pid_exists(int(owner))):
            kept.append(line)
    # Written in place: in a container the file is a mount and can't be replaced.
    HOSTS.write_text("".join(f"{line}\n" for line in (*kept, *mine)))


@contextmanager
def running() -> Iterator[Sandbox]:
    """A Slurm that runs for as long as the block does. Unavailable, with the reason, if it can't."""
    install()
    folder = Path(tempfile.mkdtemp(prefix="mslt-slurm-"))
    folder.chmod(0o755)
    names = ("slurmctld", *NODES)
    sandbox = Sandbox(folder, dict(zip(names, _free_ports(len(names)), strict=True)))
    try:
        with _names_resolve():
            try:
                sandbox.start()
                yield sandbox
            finally:
                sandbox.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    try:
        with running() as sandbox:
            print(sandbox.command("sinfo", "-N", "-l"))
            print(f"export SLURM_CONF={sandbox.environment['SLURM_CONF']}")
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            with suppress(KeyboardInterrupt):
                signal.pause()
    except Unavailable as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
