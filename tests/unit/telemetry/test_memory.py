"""Memory is told in bytes and follows what the process takes."""

from __future__ import annotations

import gc

import pytest
import torch

from mslt_ds.telemetry.memory import memory_metrics

CPU = torch.device("cpu")
MIB = 2**20


def test_resident_memory_follows_an_allocation_and_its_release():
    gc.collect()  # what other tests have left must not go in between
    before = memory_metrics(CPU)["memory"]
    block = torch.ones(64 * MIB, dtype=torch.uint8)
    held = memory_metrics(CPU)
    del block
    after = memory_metrics(CPU)
    assert before is not None and held["memory"] is not None and after["memory"] is not None
    assert held["memory"] - before == pytest.approx(64 * MIB, abs=16 * MIB)
    assert held["memory"] - after["memory"] == pytest.approx(64 * MIB, abs=16 * MIB)


def test_peak_keeps_what_was_released():
    block = torch.ones(64 * MIB, dtype=torch.uint8)
    held = memory_metrics(CPU)["memory"]
    del block
    peak = memory_metrics(CPU)["memory_peak"]
    assert held is not None and peak is not None
    # The kernel counts pages per thread and sums them late: some hundred KiB of slack.
    assert peak >= held - MIB


def test_no_gpu_memory_on_a_cpu():
    assert memory_metrics(CPU)["cuda_memory_peak"] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_peak_counts_tensors():
    device = torch.device("cuda", 0)
    block = torch.ones(64 * MIB, dtype=torch.uint8, device=device)
    del block
    peak = memory_metrics(device)["cuda_memory_peak"]
    assert peak is not None and peak >= 64 * MIB
