"""Measures the machine of one process: devices, versions, limits, disk.

Nothing here communicates with another process. A measurement that fails raises no error: its value is
missing, which `judge.py` interprets.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from mslt_ds.distributed.world import World, choose_device
from mslt_ds.doctor.facts import Disk, Gpu, RankFacts
from mslt_ds.errors import MsltError
from mslt_ds.optim import backends

_PACKAGES = ("mslt-ds", "torch", "deepspeed", "transformers", "numpy")
_SLURM = (
    "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS",
    "SLURM_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_GPUS_PER_NODE", "SLURM_RESTART_COUNT",
)  # fmt: skip
_MIB = 1 << 20


def rank_facts(world: World, environment: Mapping[str, str]) -> RankFacts:
    """The facts of this process; takes about a second."""
    device, gpu, error = None, None, ""
    try:
        device = choose_device("auto", world)
        gpu = _gpu(device) if device.type == "cuda" else None
    except (MsltError, RuntimeError) as problem:  # CUDA's own are RuntimeErrors
        device, error = None, str(problem).splitlines()[0]
    shm = _free_and_total("/dev/shm")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return RankFacts(
        rank=world.rank,
        local_rank=world.local_rank,
        host=environment.get("SLURMD_NODENAME") or socket.gethostname(),
        device=str(device or ""),
        device_error=error,
        visible_devices=environment.get("CUDA_VISIBLE_DEVICES"),
        gpus_visible=torch.cuda.device_count(),
        gpu=gpu,
        versions=_versions(),
        optimizers=backends.available(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_memory_bytes=None if locked == resource.RLIM_INFINITY else locked,
        shm_bytes=shm[1],
        memory_limit_bytes=memory_limit(Path("/sys/fs/cgroup")),
        container=container(environment, Path("/")),
        slurm={name: environment[name] for name in _SLURM if name in environment},
        gflops=gflops(device or torch.device("cpu")),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    # The torch that is imported, with its build (+cpu, +cu126).
    found["torch"] = str(torch.__version__)
    found["cuda"] = torch.version.cuda or ""
    if torch.cuda.is_available():
        from torch.cuda import nccl

        found["nccl"] = ".".join(map(str, nccl.version()))
    return found


def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    capability = (properties.major, properties.minor)
    return Gpu(
        uuid=str(properties.uuid),
        name=properties.name,
        capability=capability,
        memory_bytes=total,
        free_bytes=free,
        in_arch_list=has_code_for(capability, torch.cuda.get_arch_list()),
    )


def has_code_for(capability: tuple[int, int], arch_list: list[str]) -> bool:
    """Whether code for one of `arch_list` (sm_80, compute_90) runs on `capability`.

    Code for sm_XY runs on the same major version and the same or a later minor one. compute_XY is
    compiled at the first start for any later architecture.
    """
    for entry in arch_list:
        kind, _, number = entry.partition("_")
        digits = "".join(character for character in number if character.isdigit())
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "compute" and built <= capability:
            return True
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return False


def gflops(device: torch.device, repeats: int = 5) -> float | None:
    """The median speed of an fp32 matrix product, in 10^9 operations per second.

    None if it fails: torch has no code for the GPU, or the GPU has no free memory.
    """
    size = 4096 if device.type == "cuda" else 512
    seconds = []
    try:
        matrix = torch.ones(size, size, device=device)
        for _ in range(repeats + 1):
            started = time.perf_counter()
            torch.mm(matrix, matrix)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    except RuntimeError:
        return None
    # The first product loads libraries.
    return 2 * size**3 / statistics.median(seconds[1:]) / 1e9


def _free_and_total(path: str) -> tuple[int, int]:
    try:
        about = os.statvfs(path)
    except OSError:
        return 0, 0
    return about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize


def memory_limit(root: Path) -> int | None:
    """The limit of this process's control group (version 2, then 1), in bytes."""
    for path in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        # Version 1 reports "no limit" as a number close to 2^63.
        if text.isdecimal() and int(text) < 1 << 60:
            return int(text)
        return None
    return None


def container(environment: Mapping[str, str], root: Path) -> str:
    """The kind of container that this process runs in; empty outside a container."""
    if "APPTAINER_CONTAINER" in environment or "SINGULARITY_CONTAINER" in environment:
        return "apptainer"
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run" / ".containerenv").exists():
        return "podman"
    if "ENROOT_ROOTFS" in environment or (root / "etc" / "enroot.d").exists():
        return "enroot"
    return ""


def first_there(path: Path) -> Path:
    """`path` or its nearest existing parent, in whose file system a run would create the folder."""
    while not os.path.exists(path):  # Path.exists raises for a folder without permission
        path = path.parent
    return path


def disk(path: Path, megabytes: int) -> Disk:
    """Write and flush one file of `megabytes` and several small files in the folder `path`."""
    where = first_there(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=where) as folder:
            block = os.urandom(_MIB)
            started = time.perf_counter()
            with open(Path(folder) / "large", "wb") as file:
                for _ in range(megabytes):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            rate = megabytes * _MIB / (time.perf_counter() - started)
            small = [_durable(Path(folder) / f"small-{index}") for index in range(5)]
    except OSError as error:
        return Disk(str(path), 0, 0, 0.0, 0.0, error=f"{error.strerror or error}")
    free = _free_and_total(str(where))[0]
    return Disk(str(path), free, megabytes * _MIB, rate, statistics.median(small))


def _durable(path: Path) -> float:
    started = time.perf_counter()
    with open(path, "wb") as file:
        file.write(b"0" * 4096)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started
