"""Measures between processes: the speed of all-reduces and of each link, and clock differences.

The processes meet over gloo, which needs no GPU, and exchange their facts. NCCL is used only if it can
work: with a GPU that is missing, shared or unsupported by torch it would hang without a message. Every
rank makes the same calls in the same order, and rank 0's numbers are used. Links are measured one
after another along a ring of the nodes, or of the ranks if there is one node, so that a slow link
can't affect the others.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mslt_ds.distributed.world import World
from mslt_ds.doctor.facts import AllReduce, Facts, Link, RankFacts

_WARM_UP = 2
_CLOCK_ROUNDS = 5


def meet(world: World, timeout: timedelta) -> None:
    """Join the process group. timeout: of this, and of each wait for another rank."""
    dist.init_process_group("gloo", rank=world.rank, world_size=world.world_size, timeout=timeout)


def nccl_can_work(ranks: tuple[RankFacts, ...]) -> bool:
    """Whether each rank has its own GPU and torch has code for it."""
    gpus = {(rank.host, rank.gpu.uuid) for rank in ranks if rank.gpu and rank.gpu.in_arch_list}
    return len(gpus) == len(ranks)


def nccl_group(device: torch.device, timeout: timedelta) -> Any:
    """A process group of all ranks, each with the GPU that it would train on."""
    torch.cuda.set_device(device)
    return dist.new_group(backend="nccl", timeout=timeout)


def gather(mine: RankFacts) -> tuple[RankFacts, ...]:
    """The facts of all ranks, on every rank."""
    everyones: list[RankFacts | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    return tuple(facts for facts in everyones if facts is not None)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def all_reduces(
    sizes: tuple[int, ...], device: torch.device, group: Any, repeats: int = 5
) -> tuple[AllReduce, ...]:
    """Median seconds of an all-reduce of each of `sizes` bytes, in `group` of all ranks."""
    measured = []
    for num_bytes in sizes:
        buffer = torch.zeros(num_bytes // 4, device=device)
        seconds = []
        for _ in range(_WARM_UP + repeats):
            dist.barrier()
            _wait(device)
            started = time.perf_counter()
            dist.all_reduce(buffer, group=group)
            _wait(device)
            seconds.append(time.perf_counter() - started)
        measured.append(AllReduce(num_bytes, statistics.median(seconds[_WARM_UP:])))
    return tuple(measured)


def ring(ranks: tuple[RankFacts, ...]) -> list[tuple[int, int]]:
    """Pairs of neighbours: the first ranks of all nodes, or all ranks if there is one node."""
    leaders: dict[str, int] = {}
    for rank in ranks:
        leaders.setdefault(rank.host, rank.rank)
    members = list(leaders.values()) if len(leaders) > 1 else [rank.rank for rank in ranks]
    if len(members) < 2:
        return []
    if len(members) == 2:
        return [(members[0], members[1])]
    return list(zip(members, [*members[1:], members[0]], strict=True))


def links(
    pairs: list[tuple[int, int]],
    num_bytes: int,
    device: torch.device,
    group: Any,
    repeats: int = 3,
) -> tuple[Link, ...]:
    """The speed of each pair, there and back, one pair after another, in `group` of all ranks."""
    me = dist.get_rank()
    measured = []
    buffer = torch.zeros(num_bytes // 4, device=device)
    for source, target in pairs:
        seconds = []
        for _ in range(1 + repeats):
            dist.barrier()
            _wait(device)
            started = time.perf_counter()
            if me == source:
                dist.send(buffer, target, group=group)
                dist.recv(buffer, target, group=group)
            elif me == target:
                dist.recv(buffer, source, group=group)
                dist.send(buffer, source, group=group)
            _wait(device)
            seconds.append(time.perf_counter() - started)
        # The first round opens the connection. Only the two ranks of the pair have measured it.
        told = [statistics.median(seconds[1:])]
        dist.broadcast_object_list(told, src=source)
        measured.append(Link(source, target, 2 * num_bytes / told[0]))
    return tuple(measured)


def clock_offsets() -> tuple[tuple[float, ...], float]:
    """(seconds that each rank is ahead of rank 0, half of the longest round trip).

    As in the network time protocol, rank 0 sends a request and the other rank replies with its time,
    which is compared with the middle of the round trip. The shortest of several round trips is used.
    """
    me, size = dist.get_rank(), dist.get_world_size()
    offsets, uncertainty = [0.0] * size, 0.0
    for other in range(1, size):
        best = float("inf")
        for _ in range(_CLOCK_ROUNDS):
            stamp = torch.zeros(1, dtype=torch.float64)
            if me == 0:
                asked = time.time()
                dist.send(stamp, other)
                dist.recv(stamp, other)
                heard = time.time()
                if heard - asked < best:
                    best = heard - asked
                    offsets[other] = float(stamp) - (asked + heard) / 2
            elif me == other:
                dist.recv(stamp, 0)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), 0)
        if me == 0:
            uncertainty = max(uncertainty, best / 2)
    return tuple(offsets), uncertainty


def file_seen(path: Path, attempts: int = 20) -> tuple[bool, ...]:
    """Whether each rank sees a file that rank 0 writes to the existing folder `path`."""
    name = [f".doctor-seen-{time.time_ns()}"]
    dist.broadcast_object_list(name, src=0)
    file = path / name[0]
    if dist.get_rank() == 0:
        # If this fails, no rank sees the file.
        with contextlib.suppress(OSError):
            file.touch()
    dist.barrier()
    seen = False
    for _ in range(attempts):
        # On a network file system, a new file appears on other nodes after some time.
        seen = file.exists()
        if seen:
            break
        time.sleep(0.25)
    everyones = [False] * dist.get_world_size()
    dist.all_gather_object(everyones, seen)
    if dist.get_rank() == 0:
        file.unlink(missing_ok=True)
    return tuple(everyones)


def from_main(facts: Facts) -> Facts:
    """Rank 0's facts, on every rank."""
    told: list[Facts] = [facts]
    dist.broadcast_object_list(told, src=0)
    return told[0]
