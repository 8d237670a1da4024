"""What the doctor says of facts: each finding, and silence on a healthy cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mslt_ds.doctor.facts import AllReduce, Disk, Facts, Gpu, Link, RankFacts
from mslt_ds.doctor.judge import judge

GIB = 1 << 30


def rank(number: int, **changes) -> RankFacts:
    """One of four nodes' eight GPUs, in good health."""
    gpu = Gpu(f"uuid-{number}", "V100", (7, 0), 32 * GIB, 31 * GIB, in_arch_list=True)
    healthy = RankFacts(
        rank=number,
        local_rank=number % 8,
        host=f"gpu{number // 8:02}",
        device=f"cuda:{number % 8}",
        device_error="",
        visible_devices="0,1,2,3,4,5,6,7",
        gpus_visible=8,
        gpu=gpu,
        versions={"torch": "2.14.1+cu126", "cuda": "12.6"},
        optimizers={"torch": "usable", "triton": "usable", "numba": "usable", "apex": "usable"},
        cores=4,
        threads=4,
        open_files=65536,
        locked_memory_bytes=None,
        shm_bytes=64 * GIB,
        memory_limit_bytes=None,
        container="",
        slurm={"SLURM_JOB_ID": "7", "SLURM_PROCID": str(number)},
        gflops=12000.0,
    )
    return replace(healthy, **changes)


def facts(**changes) -> Facts:
    healthy = Facts(
        ranks=tuple(rank(number) for number in range(32)),
        backend="nccl",
        all_reduces=(AllReduce(64 << 20, 0.01),),
        links=tuple(Link(a, b, 10e9) for a, b in ((0, 8), (8, 16), (16, 24), (24, 0))),
        clock_offsets=(0.0,) * 32,
        clock_uncertainty=1e-4,
        disk=Disk("/scratch/runs", 900 * GIB, 64 << 20, 800e6, 0.01),
        file_seen_by=(True,) * 32,
    )
    return replace(healthy, **changes)


def with_rank(number: int, **changes) -> Facts:
    ranks = list(facts().ranks)
    ranks[number] = replace(ranks[number], **changes)
    return facts(ranks=tuple(ranks))


def without_gpu(**changes) -> Facts:
    base = {"gpu": None, "gpus_visible": 0, "device": "cpu", "versions": {"torch": "2", "cuda": ""}}
    return facts(ranks=(rank(0, **base | changes),), links=(), clock_offsets=(0.0,))


V100 = facts().ranks[5].gpu
assert V100 is not None
HEALTHY_DISK = facts().disk
assert HEALTHY_DISK is not None


def test_nothing_is_said_of_a_healthy_cluster() -> None:
    assert judge(facts()) == ()
    assert judge(without_gpu()) == ()


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (with_rank(5, device="", gpu=None, device_error="local rank 9, but this node shows 8 GPUs"),
         "problem", ["device", "rank 5 (gpu00)", "local rank 9", "one task for each GPU"]),
        (with_rank(5, gpus_visible=0, gpu=None, device="cpu"),
         "problem", ["rank 5", "sees no GPU", "--gpus all, --nv"]),
        (with_rank(5, gpu=replace(V100, in_arch_list=False)),
         "problem", ["rank 5", "no code for V100 (sm_70)", "CUDA 12.6"]),
        (with_rank(5, gpu=replace(V100, free_bytes=2 * GIB)),
         "warning", ["rank 5", "2.0 of 32.0 GiB free"]),
        (with_rank(5, gpu=replace(V100, uuid="uuid-4")),
         "problem", ["ranks 4, 5 (gpu00) share one GPU"]),
        (with_rank(5, gpu=replace(V100, name="A100")),
         "warning", ["different GPUs: A100, V100", "--constraint"]),
        (with_rank(5, gflops=4000.0),
         "warning", ["speed: rank 5 (gpu00)", "4000 GFLOP/s, 12000 on the others", "--exclude"]),
        (with_rank(9, versions={"torch": "2.13.0", "cuda": "12.6"}),
         "problem", ["versions: torch differs", "2.13.0, 2.14.1+cu126", "rank 9 (gpu01)"]),
        (with_rank(0, optimizers={"triton": "usable", "apex": "not NVIDIA's (PyPI's ...)"}),
         "warning", ["apex is not NVIDIA's", "pip uninstall apex"]),
        (with_rank(0, optimizers={"triton": "not installed"}),
         "warning", ["triton: not installed", "slower", "install triton"]),
        (without_gpu(optimizers={"numba": "not installed"}), "warning", ["numba: not installed"]),
        (with_rank(7, shm_bytes=64 << 20),
         "problem", ["shared memory: rank 7", "64 MiB", "--ipc=host"]),
        (without_gpu(shm_bytes=64 << 20), "warning", ["shared memory", "64 MiB"]),
        (with_rank(7, open_files=256), "warning", ["open files: rank 7", "256 allowed"]),
        (with_rank(7, threads=64), "warning", ["64 threads on 4 cores", "OMP_NUM_THREADS"]),
        (with_rank(7, locked_memory_bytes=65536), "warning", ["locked memory", "ulimit -l"]),
        (with_rank(0, slurm={"SLURM_JOB_ID": "7"}), "warning", ["in job 7", "not started by srun"]),
        (facts(clock_offsets=(0.0,) * 9 + (-7.5,) + (0.0,) * 22),
         "warning", ["clock: rank 9 (gpu01): -7.5 s", "chronyc"]),
        (facts(disk=replace(HEALTHY_DISK, error="Permission denied")),
         "problem", ["/scratch/runs: Permission denied", "output_dir"]),
        (facts(disk=replace(HEALTHY_DISK, free_bytes=GIB)), "warning", ["1.0 GiB free"]),
        (facts(disk=replace(HEALTHY_DISK, write_bytes_per_second=2e6)), "warning", ["2 MB/s"]),
        (facts(disk=replace(HEALTHY_DISK, fsync_seconds=2.0)), "warning", ["2.0 s to make"]),
        (facts(file_seen_by=(True,) * 24 + (False,) * 8),
         "problem", ["ranks 24, 25", "gpu03", "don't see what rank 0 writes", "share"]),
    ],
)  # fmt: skip
def test_one_fault_makes_one_finding(found: Facts, level: str, words: list[str]) -> None:
    (finding,) = judge(found)
    assert finding.level == level
    text = f"{finding.check}: {finding.what}; {finding.remedy}"
    assert all(word in text for word in words), text


def test_a_slow_link_is_named_and_a_node_that_is_slow_on_both_sides_too() -> None:
    def links(slow: set[tuple[int, int]]) -> tuple[Link, ...]:
        return tuple(
            Link(a, b, 1e9 if (a, b) in slow else 10e9)
            for a, b in ((0, 8), (8, 16), (16, 24), (24, 0))
        )

    (one,) = judge(facts(links=links({(8, 16)})))
    assert "gpu01 (rank 8) to gpu02 (rank 16): 1.00 GB/s, 10.00 on the others" in one.what
    assert "slow on both sides" not in one.remedy
    both = judge(facts(links=(*links({(0, 8), (8, 16)}), Link(3, 4, 10e9), Link(5, 6, 10e9))))
    assert len(both) == 2
    assert all(finding.remedy.startswith("gpu01 is slow on both sides") for finding in both)


def test_problems_come_first() -> None:
    bad = with_rank(7, shm_bytes=64 << 20, open_files=256)
    assert [finding.level for finding in judge(bad)] == ["problem", "warning"]


def test_the_load_of_a_link_is_the_same_for_any_algorithm() -> None:
    assert AllReduce(100, 2.0).bus_bytes_per_second(4) == pytest.approx(75.0)
