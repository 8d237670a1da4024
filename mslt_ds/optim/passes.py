"""The passes over memory of `Lamb`: what they are, and which code runs them for given tensors.

`Lamb` makes two passes over a group in each step. One writes the moments and sums squares, for the
trust ratios; the other applies the update. Three implementations compute the same numbers: torch's
multi-tensor operations (any device and type), numba (fp32 on a CPU) and Triton (fp32 on a GPU).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.optim.pieces import Coefficients, GroupTensors, Pieces

BackendName = Literal["auto", "torch", "numba", "triton"]


class Passes(Protocol):
    """`moments`, then `apply`, for one parameter group at a time."""

    def moments(self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients) -> Tensor:
        """Advance the moments; float64 (num_parameters, 2): squared norms of weight and update."""
        ...

    def apply(
        self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients, rates: Tensor
    ) -> None:
        """weight -= rate * update; rates: fp32 (num_parameters,), learning rate x trust ratio."""
        ...


def choose(name: str, tensors: Sequence[Tensor]) -> str:
    """The backend that runs these tensors: `name`, or for "auto" the fastest that is installed.

    Raises EnvironmentProblem if `name` is unknown or can't run them. With TRITON_INTERPRET=1 in the
    environment, "triton" also runs on a CPU, in Triton's interpreter.
    """
    device = tensors[0].device.type
    compiled = {"cpu": "numba", "cuda": "triton"}.get(device)
    # The compiled loops read memory as contiguous fp32; torch handles every other type.
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
    interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if name != compiled and not interpreted:
        raise EnvironmentProblem(f"optimizer backend {name}: it can't run on {device}; use auto")
    if not plain:
        raise EnvironmentProblem(f"optimizer backend {name}: it needs contiguous fp32; use auto")
    if not importlib.util.find_spec(name):
        raise EnvironmentProblem(f"optimizer backend {name}: not installed; use auto")
    return name


def make(name: str) -> Passes:
    """The passes of a name that `choose` returned. Compilers are imported only when used."""
    if name == "numba":
        from mslt_ds.optim.lamb_numba import NumbaBackend

        return NumbaBackend()
    if name == "triton":
        from mslt_ds.optim.lamb_triton import TritonBackend

        return TritonBackend()
    from mslt_ds.optim.lamb_torch import TorchBackend

    return TorchBackend()
