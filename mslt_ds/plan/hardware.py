"""Peak rates, memory and bandwidths of GPUs, and the speed of a network: the one table of them.

The figures are those of the makers' data sheets, without structured sparsity: NVIDIA's "V100 Tensor
Core GPU" (2020), "A100 Tensor Core GPU" (2021), "H100 Tensor Core GPU" (2023), "H200 Tensor Core GPU"
(2024), "DGX B200" (2024, per GPU), "A10 Tensor Core GPU" (2021), "L4 Tensor Core GPU" (2023), "L40S GPU"
(2023), "T4" (2019), and for the RTX cards "NVIDIA Ada GPU Architecture" (2022, appendix A) and
"NVIDIA Ampere GA102 GPU Architecture" (2021, appendix A), with accumulation in fp32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mslt_ds.errors import RecipeError


@dataclass(frozen=True)
class Gpu:
    """One GPU. half: fp16 and, where `has_bf16`, bf16 on the matrix units; single: fp32."""

    name: str  # of `mslt-ds plan --gpu`
    half: float  # FLOP/s
    single: float  # FLOP/s
    memory: float  # bytes
    memory_bandwidth: float  # bytes/s
    link: float  # bytes/s in one direction, to the other GPUs of its node
    has_bf16: bool

    def peak(self, precision: str) -> float:
        """FLOP/s in `train.precision`."""
        return self.single if precision == "fp32" else self.half


def _gpu(
    name: str,
    half: float,
    single: float,
    memory: float,
    bandwidth: float,
    link: float,
    *,
    has_bf16: bool = True,
) -> Gpu:
    """In TFLOP/s, TFLOP/s, GB, GB/s and GB/s."""
    scaled = (half * 1e12, single * 1e12, memory * 1e9, bandwidth * 1e9, link * 1e9)
    return Gpu(name, *scaled, has_bf16)


_PCIE_3, _PCIE_4 = 16, 32  # GB/s of 16 lanes

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("v100", 125, 15.7, 32, 900, 150, has_bf16=False),
        _gpu("t4", 65, 8.1, 16, 320, _PCIE_3, has_bf16=False),
        _gpu("a10", 125, 31.2, 24, 600, _PCIE_4),
        _gpu("a100", 312, 19.5, 80, 2039, 300),
        _gpu("rtx-3090", 71, 35.6, 24, 936, _PCIE_4),
        _gpu("rtx-4090", 165.2, 82.6, 24, 1008, _PCIE_4),
        _gpu("l4", 121, 30.3, 24, 300, _PCIE_4),
        _gpu("l40s", 362, 91.6, 48, 864, _PCIE_4),
        _gpu("h100", 989, 67, 80, 3350, 450),
        _gpu("h100-pcie", 756, 51, 80, 2000, 64),
        _gpu("h200", 989, 67, 141, 4800, 450),
        _gpu("b200", 2250, 75, 180, 8000, 900),
    )
}
"""By the names of `mslt-ds plan --gpu`. Those with several forms are the ones with NVLink."""

ASSUMED_UTILIZATION = 0.35
"""The share of the peak rate that forward and backward passes reach, where it isn't measured."""
GPUS_PER_NODE = 8
"""GPUs that share a node's network, as in a DGX."""


def gpu(name: str) -> Gpu:
    """The GPU of `mslt-ds plan --gpu NAME`. RecipeError if the table doesn't have it."""
    if name.lower() not in GPUS:
        raise RecipeError(f"--gpu: {name}; choose {', '.join(GPUS)}")
    return GPUS[name.lower()]


def gpu_of_device(device_name: str) -> Gpu | None:
    """The GPU that a driver calls `device_name`, such as `NVIDIA A100-SXM4-80GB`; None if unknown."""
    words = f" {' '.join(re.split('[^a-z0-9]+', device_name.lower()))} "
    found = [name for name in GPUS if f" {name.replace('-', ' ')} " in words]
    return GPUS[max(found, key=len)] if found else None


def network_bandwidth(text: str) -> float:
    """Bytes per second of a node's network: `25gbit`, `100gbit`, `3.2tbit`. RecipeError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mgt])(?:bit|bps|bit/s)", text.strip().lower())
    if match is None or not float(match[1]):
        raise RecipeError(
            f"--network: {text}; write a node's bandwidth as 25gbit, 100gbit or 3.2tbit"
        )
    return float(match[1]) * {"m": 1e6, "g": 1e9, "t": 1e12}[match[2]] / 8
