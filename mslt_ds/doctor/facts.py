"""What the doctor knows: values, as measured, without an opinion on them.

Notable: every quantity has its unit in its name, and what couldn't be measured is None or an empty
tuple, never a zero that looks like a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """The device that this rank would train on."""

    uuid: str
    """The same for two processes that use the same device, however each numbers it."""
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    free_bytes: int
    in_arch_list: bool
    """Whether torch has code for it: for its architecture, or code to compile for a newer one."""


@dataclass(frozen=True)
class Disk:
    """Where a run's folder will be. Rates are of one file of `bytes_written`, flushed to the disk."""

    path: str
    free_bytes: int
    bytes_written: int
    write_bytes_per_second: float
    fsync_seconds: float
    """The median time that it takes to make a small file durable: checkpoints wait for it."""
    error: str = ""


@dataclass(frozen=True)
class RankFacts:
    """One process, as it sees itself."""

    rank: int
    local_rank: int
    host: str
    device: str
    """`cpu`, `cuda:3`; empty where no device can be chosen."""
    device_error: str
    visible_devices: str | None
    """CUDA_VISIBLE_DEVICES as it was found."""
    gpus_visible: int
    gpu: Gpu | None
    versions: dict[str, str]
    optimizers: dict[str, str]
    """LAMB backend -> `usable`, or why it isn't."""
    cores: int
    """Cores that this process may run on."""
    threads: int
    """Threads that torch will use."""
    open_files: int
    locked_memory_bytes: int | None
    """None: unlimited."""
    shm_bytes: int
    memory_limit_bytes: int | None
    """The control group's limit; None: none."""
    container: str
    """`docker`, `apptainer`, ...; empty outside of one."""
    slurm: dict[str, str]
    gflops: float | None
    """fp32 matrix products of a fixed size, to tell a slow device from its like; None: it can't."""


@dataclass(frozen=True)
class AllReduce:
    """An all-reduce over all ranks, in fp32."""

    num_bytes: int
    seconds: float
    """The median."""

    def bus_bytes_per_second(self, world_size: int) -> float:
        """What each link has to carry: 2 (n - 1) / n of the buffer, whatever the algorithm."""
        return 2 * (world_size - 1) / world_size * self.num_bytes / self.seconds


@dataclass(frozen=True)
class Link:
    """From one rank to another, and back again."""

    source: int
    target: int
    bytes_per_second: float


@dataclass(frozen=True)
class Facts:
    """All ranks together."""

    ranks: tuple[RankFacts, ...]
    backend: str
    """What was measured with: `nccl`, or `gloo` where not every rank has a GPU that works; empty where
    there is one process."""
    all_reduces: tuple[AllReduce, ...]
    links: tuple[Link, ...]
    clock_offsets: tuple[float, ...]
    """Seconds by which each rank's clock is ahead of rank 0's."""
    clock_uncertainty: float
    """Half of the longest round trip that an offset was read from, in seconds."""
    disk: Disk | None
    file_seen_by: tuple[bool, ...]
    """For each rank, whether it saw the file that rank 0 wrote under the disk's path."""

    @property
    def world_size(self) -> int:
        return len(self.ranks)
