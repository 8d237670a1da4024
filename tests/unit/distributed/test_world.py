"""Who a process is, by every way of starting it."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from mslt_ds.distributed.world import (
    World,
    check_equal_on_all_ranks,
    check_rendezvous,
    choose_device,
    digest,
    processor_name,
)
from mslt_ds.distributed.world import world_from_environment as read_world
from mslt_ds.errors import EnvironmentProblem


def test_launchers_variables_come_first():
    launched = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}
    assert read_world(launched) == World(rank=5, world_size=8, local_rank=1)


def test_slurm_step():
    step = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "32", "SLURM_LOCALID": "1"}
    assert read_world(step) == World(rank=9, world_size=32, local_rank=1)


def test_a_batch_script_is_one_process():
    batch = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "32", "SLURM_JOB_ID": "7"}
    assert read_world(batch) == World(0, 1, 0)
    # A task that has lost its step's variables must not train beside the others as a run of its own.
    with pytest.raises(EnvironmentProblem, match="SLURM_STEP_NUM_TASKS is not set"):
        read_world(batch | {"SLURM_PROCID": "3"})


def test_a_port_in_use_is_named(tmp_path):
    code = (
        "import os, torch; from mslt_ds.distributed.world import World, join; "
        "from mslt_ds.errors import MsltError, report\n"
        "try: join(World(0, 2, 0), torch.device('cpu'), os.environ)\n"
        "except MsltError as error: raise SystemExit(report(error))"
    )
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | rendezvous,
            capture_output=True,
            text=True,
        )
    assert found.returncode == 3, found.stderr
    assert f"MASTER_PORT={port}: another process uses this port" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("port", ["", "none", "0", "70000", "9" * 30])
def test_a_port_that_is_none_is_named(port):
    with pytest.raises(EnvironmentProblem, match="MASTER_PORT"):
        check_rendezvous(World(0, 2, 0), {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})


def test_a_shell_inside_an_allocation_is_one_process():
    assert read_world({"SLURM_NTASKS": "32", "SLURM_JOB_ID": "7"}) == World(0, 1, 0)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "RANK=4 is not below WORLD_SIZE=4"),
    ],
)
def test_what_does_not_fit_is_named(environment, named):
    with pytest.raises(EnvironmentProblem, match=named):
        read_world(environment)


def test_device_index_is_taken_among_the_visible_ones(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    world = World(rank=11, world_size=32, local_rank=3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert choose_device("auto", world) == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # one GPU bound to each task
    assert choose_device("auto", world) == torch.device("cuda", 0)
    assert choose_device("cpu", world) == torch.device("cpu")


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EnvironmentProblem, match=r"train\.device: cuda"):
        choose_device("cuda", World(0, 1, 0))


def test_digest_sees_names_shapes_types_and_bits():
    tensors = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    assert digest(tensors) == digest(dict(reversed(tensors.items())))
    changed = tensors["a"].clone()
    changed[3] = torch.nextafter(changed[3], torch.tensor(9.0))
    others = [
        tensors | {"a": changed},
        tensors | {"a": tensors["a"].view(2, 3)},
        {"c": tensors["a"], "b": tensors["b"]},
        tensors | {"b": -tensors["b"]},
        tensors | {"a": tensors["a"].bfloat16()},
    ]
    assert len({digest(tensors), *map(digest, others)}) == len(others) + 1


def test_ranks_that_differ_are_named(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)

    def gather(everyones, mine):
        everyones[:] = [mine, mine, b"other"]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(EnvironmentProblem, match=r"weights: ranks \[2\]"):
        check_equal_on_all_ranks({"a": torch.zeros(1)}, "weights")


def test_a_processor_is_named_with_its_generation():
    core = "processor\t: {}\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    assert (
        processor_name(core.format(0) + "\n" + core.format(1)) == "AMD EPYC (family 25, model 17)"
    )
    assert processor_name("processor\t: 0\nBogoMIPS\t: 50.00\n") == platform.machine()
    assert processor_name("") == platform.machine()
