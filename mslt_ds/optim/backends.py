"""Which code runs LAMB's two passes: chosen by device and by what is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mslt_ds.errors import EnvironmentProblem


def choose(name: str, tensors: Sequence[Tensor]) -> str:
    """ "auto" made concrete for these tensors; raises where the wanted backend can't run them."""
    device = tensors[0].device.type
    compiled = {"cpu": "numba", "cuda": "triton"}.get(device)
    # The compiled loops walk memory in fp32; anything else is torch's to get right.
    plain = all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    if name == "auto":
        usable = compiled is not None and plain and importlib.util.find_spec(compiled)
        return compiled if compiled and usable else "torch"
    if name == "torch":
        return name
    if name not in ("numba", "triton"):
        raise EnvironmentProblem(
            f"optimizer backend {name!r}: choose auto, torch, numba (CPU) or triton (GPU)"
        )
    if name != compiled:
        raise EnvironmentProblem(f"optimizer backend {name}: it can't run on {device}; use auto")
    if not plain:
        raise EnvironmentProblem(f"optimizer backend {name}: it needs contiguous fp32; use auto")
    if not importlib.util.find_spec(name):
        raise EnvironmentProblem(f"optimizer backend {name}: not installed; use auto")
    return name


def make(name: str) -> Any:
    """A backend by its concrete name; compilers are imported only where they are used."""
    if name == "numba":
        from mslt_ds.optim.lamb_numba import NumbaBackend

        return NumbaBackend()
    from mslt_ds.optim.lamb_torch import TorchBackend

    return TorchBackend()
