"""The rank and device of this process, and the process group.

A process can be started in three ways, which its environment variables tell apart: by a launcher that
sets `RANK`, `WORLD_SIZE` and `LOCAL_RANK` (`deepspeed`, `torchrun`), as a task of a Slurm step
(`srun`), or alone, which includes a batch script without srun: Slurm sets `SLURM_PROCID=0` there, but
not `SLURM_STEP_NUM_TASKS`. DeepSpeed is imported only when the group is joined, so that a wrong recipe is
refused at once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mslt_ds.errors import EnvironmentProblem, RecipeError, first_line

# DeepSpeed's default.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """rank: in [0, world_size); local_rank: the process's number on its node."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0


_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SLURM_STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


def world_from_environment(environment: Mapping[str, str]) -> World:
    """Rank, world size and local rank. EnvironmentProblem if a variable is missing or wrong."""
    for names in (_LAUNCHER, _SLURM_STEP):
        if names[0] not in environment or _is_batch_script(names, environment):
            continue
        rank, world_size, local_rank = (_integer(environment, name) for name in names)
        if not 0 <= rank < world_size:
            raise EnvironmentProblem(
                f"{names[0]}={rank} is not below {names[1]}={world_size}; "
                "start every process with a rank of its own, from 0"
            )
        return World(rank, world_size, local_rank)
    return World(rank=0, world_size=1, local_rank=0)


def _is_batch_script(names: tuple[str, ...], environment: Mapping[str, str]) -> bool:
    """Whether Slurm's variables are those of a batch script instead of a task that srun started."""
    return (
        names == _SLURM_STEP
        and "SLURM_STEP_NUM_TASKS" not in environment
        and environment["SLURM_PROCID"] == "0"
    )


def _integer(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isdecimal():
        found = "is not set" if value is None else f"is {value!r}, not a whole number"
        raise EnvironmentProblem(
            f"environment variable {name} {found}; start the run by deepspeed, torchrun or srun, "
            "which set it, or as a single process without RANK"
        )
    return int(value)


def choose_device(requested: str, world: World, precision: str = "fp32") -> torch.device:
    """The device of this process. RecipeError if it can't compute in `precision`.

    requested: `auto`, `cpu` or `cuda` (`train.device`). If each task sees only its own GPU (one
    visible device, local rank 3), the index counts the visible devices.
    """
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if not visible:
        raise EnvironmentProblem(
            "train.device: cuda, but torch sees no GPU; check nvidia-smi, CUDA_VISIBLE_DEVICES "
            f"(here {os.environ.get('CUDA_VISIBLE_DEVICES')!r}) and that torch "
            f"{torch.__version__} is a CUDA build, or set train.device: cpu"
        )
    if visible > 1 and world.local_rank >= visible:
        raise EnvironmentProblem(
            f"local rank {world.local_rank}, but this node shows {visible} GPUs; start one process "
            "for each GPU"
        )
    device = torch.device("cuda", world.local_rank % visible)
    if precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
        raise RecipeError(
            f"train.precision: bf16, but {torch.cuda.get_device_name(device)} has no bf16 "
            "arithmetic; choose fp16"
        )
    return device


def device_name(device: torch.device) -> str:
    """The model name of the GPU or the processor, with a processor's family and model number: virtual machines
    give several generations one name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    return processor_name(information.read_text() if information.exists() else "")


def processor_name(information: str) -> str:
    """information: the content of /proc/cpuinfo, which begins with the first core"""
    lines = information.split("\n\n")[0].splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in pairs}
    name = fields.get("model name", platform.machine())
    numbers = [
        f"{key.split()[-1]} {fields[key]}" for key in ("cpu family", "model") if key in fields
    ]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def join(
    world: World,
    device: torch.device,
    environment: MutableMapping[str, str],
    timeout: timedelta = _TIMEOUT,
) -> None:
    """Join the process group: NCCL between GPUs, gloo between CPUs.

    timeout: the longest wait for the other processes, here and in each collective

    EnvironmentProblem if the port is in use or the other processes can't be reached.
    """
    if world.world_size == 1:
        environment.setdefault("MASTER_ADDR", "127.0.0.1")
        environment.setdefault("MASTER_PORT", str(_free_port()))
    check_rendezvous(world, environment)
    environment["RANK"] = str(world.rank)
    environment["WORLD_SIZE"] = str(world.world_size)
    environment["LOCAL_RANK"] = str(device.index if device.type == "cuda" else world.local_rank)
    # DeepSpeed chooses its accelerator when it is imported.
    environment["DS_ACCELERATOR"] = device.type
    if device.type == "cuda":
        torch.cuda.set_device(device)

    import deepspeed

    if device.type == "cpu":
        # DeepSpeed would compile this operator for inference here. It takes half a minute the first
        # time, and if the process is killed meanwhile, a lock file makes every later run wait.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        deepspeed.init_distributed(
            dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise _unreachable(world, environment, error) from error


def _unreachable(
    world: World, environment: Mapping[str, str], error: Exception
) -> EnvironmentProblem:
    """What an error of torch's rendezvous means to the user."""
    place = f"MASTER_ADDR={environment['MASTER_ADDR']}, MASTER_PORT={environment['MASTER_PORT']}"
    if "EADDRINUSE" in str(error):
        return EnvironmentProblem(
            f"{place}: another process uses this port, perhaps another run on the node; choose another "
            "MASTER_PORT (deepspeed --master_port, torchrun --master_port)"
        )
    return EnvironmentProblem(
        f"{place}: rank {world.rank} of {world.world_size} can't join the others "
        f"({first_line(error)}); check that rank 0 runs at this address, that every rank was started "
        "and that no firewall blocks the port"
    )


def check_rendezvous(world: World, environment: Mapping[str, str]) -> None:
    """EnvironmentProblem unless MASTER_ADDR and MASTER_PORT are set, and the port is one."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environment:
            raise EnvironmentProblem(
                f"environment variable {name} is not set, and {world.world_size} processes need it "
                "to find each other; slurm/common.sh shows how to set it under srun"
            )
    port = environment["MASTER_PORT"]
    if not (port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        raise EnvironmentProblem(
            f"environment variable MASTER_PORT is {port!r}, not a port; choose a number from 1024 to 65535"
        )


def leave() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def digest(tensors: Mapping[str, Tensor]) -> bytes:
    """A 16-byte hash of the names, shapes, types and bits of `tensors`."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()


def check_same_on_all_ranks(values: Mapping[str, Any]) -> None:
    """EnvironmentProblem on every rank unless all pass the same values. Every rank has to call it.

    values: what they are called -> the value, of any kind that can be pickled
    """
    everyones: list[Mapping[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyones, dict(values))
    lines = []
    for name in sorted({name for one in everyones for name in one}):
        first = everyones[0].get(name)
        differing = [rank for rank, one in enumerate(everyones) if one.get(name) != first]
        if differing:
            other = everyones[differing[0]].get(name)
            lines.append(f"{name}: {first!r} on rank 0, {other!r} on ranks {differing}")
    if lines:
        raise EnvironmentProblem(
            "the ranks disagree:\n  "
            + "\n  ".join(lines)
            + "\nstart all ranks by the same command, and "
            "check that all nodes see the same files and run the same versions"
        )


def check_equal_on_all_ranks(tensors: Mapping[str, Tensor], what: str) -> None:
    """EnvironmentProblem on every rank unless all hold the same bits. Every rank has to call it."""
    mine = digest(tensors)
    everyones: list[bytes] = [b""] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    differing = [rank for rank, other in enumerate(everyones) if other != everyones[0]]
    if differing:
        raise EnvironmentProblem(
            f"{what}: ranks {differing} hold other numbers than rank 0; check that all nodes see "
            "the same files and run the same versions of torch and of this package"
        )
