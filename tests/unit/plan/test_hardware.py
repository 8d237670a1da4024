"""The table of GPUs, and how they and networks are named."""

from __future__ import annotations

import pytest

from mslt_ds.errors import RecipeError
from mslt_ds.plan.hardware import GPUS, gpu, gpu_of_device, network_bandwidth


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_a_drivers_name_is_understood(device, name):
    assert gpu_of_device(device) is GPUS[name] is gpu(name.upper())


def test_unknown_names():
    # A10G, in the cloud, isn't an A10: its rate is lower.
    assert gpu_of_device("NVIDIA A10G") is None
    assert gpu_of_device("Intel(R) Xeon(R) Processor") is None
    with pytest.raises(RecipeError, match="--gpu: v10; choose v100, t4"):
        gpu("v10")


def test_networks():
    assert network_bandwidth("25gbit") == 25e9 / 8
    assert network_bandwidth("3.2 Tbps") == 400e9
    for text in ("fast", "25", "0gbit", "25gbyte", "-1gbit"):
        with pytest.raises(RecipeError, match=f"--network: {text}"):
            network_bandwidth(text)
