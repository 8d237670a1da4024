"""The values that the doctor measures, without a judgement of them.

The name of a quantity holds its unit. A value that couldn't be measured is None or an empty tuple,
never 0.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """The device that this rank would train on."""

    uuid: str
    """Identifies the device: two processes that use it see the same, whatever its index is."""
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    free_bytes: int
    in_arch_list: bool
    """Whether torch has code for its architecture, or code that can be compiled for it."""


@dataclass(frozen=True)
class Disk:
    """The disk of the run folder. The rate is that of a file of `bytes_written` with its fsync."""

    path: str
    free_bytes: int
    bytes_written: int
    write_bytes_per_second: float
    fsync_seconds: float
    """The median time to write a small file and fsync it. Checkpoints wait for this."""
    error: str = ""


@dataclass(frozen=True)
class RankFacts:
    """One process."""

    rank: int
    local_rank: int
    host: str
    device: str
    """`cpu`, `cuda:3`; empty if no device can be chosen."""
    device_error: str
    visible_devices: str | None
    """The value of CUDA_VISIBLE_DEVICES."""
    gpus_visible: int
    gpu: Gpu | None
    versions: dict[str, str]
    optimizers: dict[str, str]
    """LAMB backend -> `usable`, or the reason why it isn't."""
    cores: int
    """Cores that this process may run on."""
    threads: int
    """Threads that torch will use."""
    open_files: int
    locked_memory_bytes: int | None
    """None: unlimited."""
    shm_bytes: int
    memory_limit_bytes: int | None
    """The control group's limit; None: no limit."""
    container: str
    """`docker`, `apptainer`, ...; empty outside a container."""
    slurm: dict[str, str]
    gflops: float | None
    """Speed of fp32 matrix products of a fixed size, to find a slow device; None: it failed."""


@dataclass(frozen=True)
class AllReduce:
    """An all-reduce over all ranks, in fp32."""

    num_bytes: int
    seconds: float
    """The median."""

    def bus_bytes_per_second(self, world_size: int) -> float:
        """The traffic of each link: 2 (n - 1) / n of the buffer, for any algorithm."""
        return 2 * (world_size - 1) / world_size * self.num_bytes / self.seconds


@dataclass(frozen=True)
class Link:
    """The connection of two ranks; the rate is that of a message there and back."""

    source: int
    target: int
    bytes_per_second: float


@dataclass(frozen=True)
class Facts:
    """All ranks, and what was measured between them."""

    ranks: tuple[RankFacts, ...]
    backend: str
    """`nccl`, or `gloo` if not every rank has a working GPU; empty for a single process."""
    all_reduces: tuple[AllReduce, ...]
    links: tuple[Link, ...]
    clock_offsets: tuple[float, ...]
    """Seconds by which each rank's clock is ahead of rank 0's."""
    clock_uncertainty: float
    """Half of the longest round trip among those that gave an offset, in seconds."""
    disk: Disk | None
    file_seen_by: tuple[bool, ...]
    """For each rank, whether it saw a file that rank 0 wrote to the disk's path."""

    @property
    def world_size(self) -> int:
        return len(self.ranks)
