"""Derives findings from facts: what is wrong, where, and the remedy. Pure.

A finding names its ranks and hosts. Some checks have a fixed bound, beyond which a run fails or waits.
Speeds have no bound that fits all machines, so ranks are compared with each other: a link or device
with less than half of the median speed is reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mslt_ds.doctor.facts import Facts, RankFacts

Level = Literal["problem", "warning", "note"]

MIB = 1 << 20
GIB = 1 << 30
# NCCL's shared-memory transport needs a few MiB for each pair of ranks; Docker's default is 64 MiB.
LEAST_SHM_BYTES = 256 * MIB
LEAST_OPEN_FILES = 1024
LEAST_FREE_BYTES = 10 * GIB
SLOW_DISK_BYTES_PER_SECOND = 50e6
SLOW_FSYNC_SECONDS = 0.5
# Logs of several nodes are compared by time; certificates and Kerberos tolerate minutes.
LARGEST_SKEW_SECONDS = 1.0
# A rank or link that is slower than the median by this factor is reported: all others wait for it.
SLOW_BY = 2.0


@dataclass(frozen=True)
class Finding:
    """A result of a check. level: a problem stops or spoils a run, a warning costs time."""

    level: Level
    check: str
    what: str
    remedy: str


def judge(facts: Facts) -> tuple[Finding, ...]:
    """All findings, the most serious first."""
    order = {"problem": 0, "warning": 1, "note": 2}
    found = [finding for check in _CHECKS for finding in check(facts)]
    return tuple(sorted(found, key=lambda finding: order[finding.level]))


def _ranks(ranks: list[RankFacts]) -> str:
    """`ranks 3, 4 (gpu07)`, shortened where there are many."""
    numbers = ", ".join(str(rank.rank) for rank in ranks[:8]) + (", ..." if len(ranks) > 8 else "")
    hosts = ", ".join(sorted({rank.host for rank in ranks})[:8])
    return f"rank{'s' if len(ranks) > 1 else ''} {numbers} ({hosts})"


def _differing(facts: Facts, of: Callable[[RankFacts], object]) -> list[RankFacts]:
    """The ranks whose value isn't the most common one."""
    values = [of(rank) for rank in facts.ranks]
    common = max(values, key=values.count)
    return [rank for rank, value in zip(facts.ranks, values, strict=True) if value != common]


def _devices(facts: Facts) -> Iterator[Finding]:
    for error in sorted({rank.device_error for rank in facts.ranks if rank.device_error}):
        ranks = [rank for rank in facts.ranks if rank.device_error == error]
        yield Finding(
            "problem", "device", f"{_ranks(ranks)}: {error}",
            "start one task for each GPU, and check CUDA_VISIBLE_DEVICES and the task's --gpus options",
        )  # fmt: skip
    builds = [r for r in facts.ranks if r.gpus_visible == 0 and r.versions.get("cuda")]
    if builds:
        yield Finding(
            "problem", "device", f"{_ranks(builds)}: torch is a CUDA build and sees no GPU",
            "check nvidia-smi; in a container, give it the GPUs (--gpus all, --nv); in a job, ask for them",
        )  # fmt: skip
    for rank in facts.ranks:
        gpu = rank.gpu
        if gpu and not gpu.in_arch_list:
            major, minor = gpu.capability
            yield Finding(
                "problem", "device",
                f"{_ranks([rank])}: torch {rank.versions['torch']} has no code for {gpu.name} "
                f"(sm_{major}{minor})",
                "install a torch built for it: for a V100, one for CUDA 12.6 up to torch 2.14",
            )  # fmt: skip
        if gpu and gpu.free_bytes < 0.9 * gpu.memory_bytes:
            yield Finding(
                "warning", "device",
                f"{_ranks([rank])}: {gpu.name} has {gpu.free_bytes / GIB:.1f} of "
                f"{gpu.memory_bytes / GIB:.1f} GiB free",
                "nvidia-smi shows the processes that use it; end those left by an earlier run",
            )  # fmt: skip
    taken: dict[tuple[str, str], list[RankFacts]] = {}
    for rank in facts.ranks:
        if rank.gpu:
            taken.setdefault((rank.host, rank.gpu.uuid), []).append(rank)
    for ranks in taken.values():
        if len(ranks) > 1:
            yield Finding(
                "problem", "device", f"{_ranks(ranks)} share one GPU",
                "start one process for each GPU: --ntasks-per-node is the number of GPUs",
            )  # fmt: skip
    names = {rank.gpu.name for rank in facts.ranks if rank.gpu}
    if len(names) > 1:
        yield Finding(
            "warning", "device", f"different GPUs: {', '.join(sorted(names))}",
            "every step waits for the slowest; ask for one kind (--constraint, --gres=gpu:KIND)",
        )  # fmt: skip


def _speed(facts: Facts) -> Iterator[Finding]:
    speeds = [(rank.gflops, rank) for rank in facts.ranks if rank.gflops is not None]
    if len(speeds) < 3:
        return
    usual = statistics.median(speed for speed, _ in speeds)
    slow = [rank for speed, rank in speeds if speed * SLOW_BY < usual]
    if slow:
        worst = min(speed for speed, _ in speeds)
        yield Finding(
            "warning", "speed",
            f"{_ranks(slow)}: matrix products at {worst:.0f} GFLOP/s, {usual:.0f} on the others",
            "look at the device's clock, temperature and other processes (nvidia-smi -q -d "
            "PERFORMANCE); leave the node out with --exclude",
        )  # fmt: skip


def _versions(facts: Facts) -> Iterator[Finding]:
    for name in facts.ranks[0].versions:
        others = _differing(facts, lambda rank, name=name: rank.versions.get(name))
        if others:
            found = ", ".join(sorted({rank.versions.get(name) or "none" for rank in facts.ranks}))
            yield Finding(
                "problem", "versions", f"{name} differs between ranks ({found}): {_ranks(others)}",
                "let all nodes use the same environment or image (MSLT_VENV, MSLT_CONTAINER)",
            )  # fmt: skip


def _optimizers(facts: Facts) -> Iterator[Finding]:
    mine = facts.ranks[0].optimizers
    if mine.get("apex", "").startswith("not NVIDIA's"):
        yield Finding(
            "warning", "optimizer", f"apex is {mine['apex']}",
            "pip uninstall apex; backend auto needs none, NVIDIA's is built from its source",
        )  # fmt: skip
    on_gpu = facts.ranks[0].gpu is not None
    compiled = "triton" if on_gpu else "numba"
    if mine.get(compiled) != "usable":
        yield Finding(
            "warning", "optimizer", f"{compiled}: {mine.get(compiled)}; LAMB takes torch's slower passes",
            f"install {compiled}",
        )  # fmt: skip


def _limits(facts: Facts) -> Iterator[Finding]:
    small = [rank for rank in facts.ranks if rank.shm_bytes < LEAST_SHM_BYTES]
    if small:
        # Without it NCCL fails; gloo uses sockets.
        level = "problem" if any(rank.gpu for rank in facts.ranks) else "warning"
        yield Finding(
            level, "shared memory",
            f"{_ranks(small)}: /dev/shm has {min(rank.shm_bytes for rank in small) / MIB:.0f} MiB",
            "docker run --ipc=host or --shm-size=8g; NCCL and loader processes exchange data there",
        )  # fmt: skip
    files = [rank for rank in facts.ranks if rank.open_files < LEAST_OPEN_FILES]
    if files:
        yield Finding(
            "warning", "open files", f"{_ranks(files)}: {min(r.open_files for r in files)} allowed",
            "ulimit -n 65536, or docker run --ulimit nofile=65536",
        )  # fmt: skip
    over = [rank for rank in facts.ranks if rank.threads > rank.cores]
    if over:
        yield Finding(
            "warning", "cores",
            f"{_ranks(over)}: {over[0].threads} threads on {over[0].cores} cores",
            "set OMP_NUM_THREADS to the cores of a task; ask for cores with --cpus-per-task",
        )  # fmt: skip
    several = len({rank.host for rank in facts.ranks}) > 1
    locked = [rank for rank in facts.ranks if rank.locked_memory_bytes is not None]
    if several and facts.backend == "nccl" and locked:
        yield Finding(
            "warning", "locked memory", f"{_ranks(locked)}: a limit is set",
            "InfiniBand registers memory: ulimit -l unlimited (in Slurm: PropagateResourceLimits)",
        )  # fmt: skip


def _slurm(facts: Facts) -> Iterator[Finding]:
    job = facts.ranks[0].slurm
    if job.get("SLURM_JOB_ID") and "SLURM_PROCID" not in job:
        yield Finding(
            "warning", "slurm", f"in job {job['SLURM_JOB_ID']}, but not started by srun",
            "sbatch slurm/doctor.sh, or srun mslt-ds doctor, looks at all tasks of the job",
        )  # fmt: skip


def _clock(facts: Facts) -> Iterator[Finding]:
    late = [
        rank
        for rank, offset in zip(facts.ranks, facts.clock_offsets, strict=False)
        if abs(offset) > LARGEST_SKEW_SECONDS + facts.clock_uncertainty
    ]
    if late:
        worst = max((facts.clock_offsets[rank.rank] for rank in late), key=abs)
        yield Finding(
            "warning", "clock", f"{_ranks(late)}: {worst:+.1f} s from rank 0's clock",
            "start the time service on these nodes (chronyc tracking); logs can't be compared",
        )  # fmt: skip


def _disk(facts: Facts) -> Iterator[Finding]:
    disk = facts.disk
    if disk is None:
        return
    if disk.error:
        yield Finding(
            "problem", "disk", f"{disk.path}: {disk.error}",
            "give a folder that can be written to: output_dir, MSLT_OUTPUT, or doctor --path",
        )  # fmt: skip
        return
    if disk.free_bytes < LEAST_FREE_BYTES:
        yield Finding(
            "warning", "disk", f"{disk.path}: {disk.free_bytes / GIB:.1f} GiB free",
            "a checkpoint of BERT-Large takes 4 GB, and checkpoint.keep of them are kept; make room",
        )  # fmt: skip
    if disk.write_bytes_per_second < SLOW_DISK_BYTES_PER_SECOND:
        yield Finding(
            "warning", "disk", f"{disk.path}: writes {disk.write_bytes_per_second / 1e6:.0f} MB/s",
            "use a scratch file system; or checkpoint less often (checkpoint.every_steps)",
        )  # fmt: skip
    if disk.fsync_seconds > SLOW_FSYNC_SECONDS:
        yield Finding(
            "warning", "disk", f"{disk.path}: {disk.fsync_seconds:.1f} s to make a small file durable",
            "use a scratch file system for output_dir",
        )  # fmt: skip
    blind = [r for r, seen in zip(facts.ranks, facts.file_seen_by, strict=False) if not seen]
    if blind:
        yield Finding(
            "problem", "disk", f"{_ranks(blind)} don't see what rank 0 writes to {disk.path}",
            "recipe, store and output_dir have to be on a file system that all nodes share",
        )  # fmt: skip


def _network(facts: Facts) -> Iterator[Finding]:
    if len(facts.links) < 3:
        return
    usual = statistics.median(link.bytes_per_second for link in facts.links)
    slow = [link for link in facts.links if link.bytes_per_second * SLOW_BY < usual]
    count = [0] * facts.world_size
    for link in slow:
        count[link.source] += 1
        count[link.target] += 1
    for link in slow:
        ends = (facts.ranks[link.source], facts.ranks[link.target])
        suspect = [rank.host for rank in ends if count[rank.rank] > 1]
        yield Finding(
            "warning", "network",
            f"{ends[0].host} (rank {link.source}) to {ends[1].host} (rank {link.target}): "
            f"{link.bytes_per_second / 1e9:.2f} GB/s, {usual / 1e9:.2f} on the others",
            (f"{suspect[0]} is slow on both sides: " if suspect else "")
            + "check cable, switch port and ibstat there; set MSLT_INTERFACE where it takes the wrong "
            "network; leave a node out with --exclude",
        )  # fmt: skip


_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _devices,
    _versions,
    _limits,
    _disk,
    _network,
    _speed,
    _clock,
    _slurm,
    _optimizers,
)
