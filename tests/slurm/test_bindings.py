"""Two nodes of eight GPUs, bound either way: every task takes a device that exists for it, its own.

The GPUs are pretended, so the trainer's place is taken by a probe that calls its choice of a device
with the number of devices that CUDA would count: those in CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import re

import pytest

from tests.slurm.conftest import ROOT, Jobs
from tests.slurm.sandbox import GPUS, NODES

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PROBE = """
import os
import torch
from mslt_ds.distributed.world import choose_device, world_from_environment
visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: len(visible)
world = world_from_environment(os.environ)
index = choose_device("auto", world).index
names = ["SLURMD_NODENAME", "MASTER_ADDR", "MASTER_PORT"]
print("task", world.rank, world.world_size, world.local_rank, len(visible), visible[index],
      *[os.environ[name] for name in names], flush=True)
"""


@pytest.mark.parametrize(
    ("binding", "visible"),
    [
        ([f"--gpus-per-node={GPUS}"], GPUS),
        (["--gpus-per-node=0", "--gpus-per-task=1"], 1),
    ],
    ids=["all-visible", "one-per-task"],
)
def test_every_task_has_a_device_of_its_own(jobs: Jobs, binding: list[str], visible: int) -> None:
    (jobs.folder / "slurm").symlink_to(ROOT / "slurm")
    (jobs.folder / "mslt_ds").mkdir()
    (jobs.folder / "mslt_ds" / "train.py").write_text(PROBE)
    job = jobs.submit(
        "--nodes=2", f"--ntasks-per-node={GPUS}", "--cpus-per-task=1", *binding,
        "slurm/pretrain_large.sh", cwd=jobs.folder, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert jobs.wait(job) == "COMPLETED", jobs.log(job)
    told = re.findall(r"task (\d+) 16 (\d+) (\d+) (\d+) (\S+) (\S+) (\d+)", jobs.log(job))
    assert len(told) == 2 * GPUS, jobs.log(job)
    assert sorted(int(rank) for rank, *_ in told) == list(range(2 * GPUS))
    assert {int(count) for _, _, count, *_ in told} == {visible}
    for node in NODES:
        here = [(local, gpu) for _, local, _, gpu, name, _, _ in told if name == node]
        assert sorted(int(local) for local, _ in here) == list(range(GPUS))
        assert sorted(int(gpu) for _, gpu in here) == list(range(GPUS))
    assert len({(address, port) for *_, address, port in told}) == 1
    assert told[0][5] == NODES[0]
