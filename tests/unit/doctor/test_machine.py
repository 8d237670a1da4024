"""What one process measures, here, and what it reads from the files of a container."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mslt_ds.distributed.world import World
from mslt_ds.doctor import machine, network
from mslt_ds.doctor.judge import judge
from mslt_ds.doctor.network import ring
from tests.unit.doctor.test_judge import facts, with_rank


def test_this_machine() -> None:
    facts = machine.rank_facts(World(0, 1, 0), {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node3"})
    assert facts.device in ("cpu", "cuda:0") and facts.device_error == ""
    assert facts.host == "node3" and facts.slurm == {"SLURM_JOB_ID": "7"}
    assert facts.gflops and facts.cores > 0 and facts.shm_bytes > 0
    assert all(facts.versions[name] for name in ("python", "torch", "deepspeed", "transformers"))
    assert facts.optimizers["torch"] == "usable"


def test_the_disk_of_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    disk = machine.disk(tmp_path / "not" / "there", megabytes=1)
    assert disk.error == "" and disk.bytes_written == 1 << 20
    assert disk.write_bytes_per_second > 0 and disk.fsync_seconds > 0 and disk.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_can_not_be_written_to() -> None:
    assert machine.disk(Path("/proc/runs"), megabytes=1).error


@pytest.mark.parametrize(
    ("capability", "arch_list", "runs"),
    [
        ((7, 0), ["sm_70", "sm_80"], True),
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((8, 6), ["sm_80"], True),  # a later minor version of the same
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),  # compiled on the first start
        ((10, 0), ["sm_90a", "sm_100"], True),
        ((8, 0), [], False),
    ],
)
def test_code_for_a_device(capability: tuple[int, int], arch_list: list[str], runs: bool) -> None:
    assert machine.has_code_for(capability, arch_list) == runs


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "8589934592\n"}, 8589934592),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "4294967296\n"}, 4294967296),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_memory_limit(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.memory_limit(tmp_path) == limit


def test_containers_are_told_apart(tmp_path: Path) -> None:
    assert machine.container({}, tmp_path) == ""
    assert machine.container({"APPTAINER_CONTAINER": "x.sif"}, tmp_path) == "apptainer"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".containerenv").touch()
    assert machine.container({}, tmp_path) == "podman"
    (tmp_path / ".dockerenv").touch()
    assert machine.container({}, tmp_path) == "docker"


def test_links_are_measured_between_nodes_or_between_the_ranks_of_one() -> None:
    from tests.unit.doctor.test_judge import facts, rank

    assert ring(facts().ranks) == [(0, 8), (8, 16), (16, 24), (24, 0)]
    assert ring(tuple(rank(number) for number in range(3))) == [(0, 1), (1, 2), (2, 0)]
    assert ring((rank(0), rank(8))) == [(0, 8)]
    assert ring((rank(0),)) == []


def test_nccl_is_tried_only_where_each_rank_has_a_gpu_of_its_own_with_code_for_it() -> None:
    healthy = facts().ranks
    gpu = healthy[5].gpu
    assert gpu is not None and network.nccl_can_work(healthy)
    for broken in (None, replace(gpu, in_arch_list=False), healthy[6].gpu):
        ranks = (*healthy[:5], replace(healthy[5], gpu=broken), *healthy[6:])
        assert not network.nccl_can_work(ranks)


def test_a_device_that_can_not_compute_has_no_speed() -> None:
    assert machine.gflops(torch.device("mps")) is None  # which this torch has no code for
    assert not [f for f in judge(with_rank(5, gflops=None)) if f.check == "speed"]
