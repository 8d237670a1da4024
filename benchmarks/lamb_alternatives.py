"""Alternatives to numba for LAMB's two passes on a CPU: C++ with OpenMP, and torch.compile.

Both implement `mslt_ds.optim.passes.Passes`, as NumbaBackend does, and compute the same numbers.
`python -m benchmarks.optimizer --alternatives` compares their speed. docs/decisions/0007 says why they
aren't in the package.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mslt_ds.optim.passes import Passes
from mslt_ds.optim.pieces import Coefficients, GroupTensors, Pieces

BLOCK = 1 << 16

SOURCE = r"""
#include <cmath>
#include <cstdint>
// table: (blocks, 6) addresses of weight, gradient, exp_avg, exp_avg_sq; elements; parameter
// scalars: 1 - beta1, beta2, 1 - beta2, eps, decay, gradient decay, gradient scale
extern "C" void moments(const int64_t* table, int64_t blocks, const float* first_factors,
                        const float* second_factors, const float* s, double* squares) {
  #pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t* row = table + 6 * b;
    const float* __restrict w = (const float*)row[0];
    const float* __restrict g = (const float*)row[1];
    float* __restrict m = (float*)row[2];
    float* __restrict v = (float*)row[3];
    const float first = first_factors[row[5]], second = second_factors[row[5]];
    double w_square = 0, u_square = 0;
    for (int64_t low = 0; low < row[4]; low += 2048) {
      const int64_t high = low + 2048 < row[4] ? low + 2048 : row[4];
      float w_sum = 0, u_sum = 0;
      #pragma omp simd reduction(+ : w_sum, u_sum)
      for (int64_t i = low; i < high; ++i) {
        const float gradient = g[i] * s[6] + s[5] * w[i];
        const float one = m[i] + s[0] * (gradient - m[i]);
        const float two = s[1] * v[i] + s[2] * gradient * gradient;
        m[i] = one;
        v[i] = two;
        const float u = one * first / (std::sqrt(two) * second + s[3]) + s[4] * w[i];
        w_sum += w[i] * w[i];
        u_sum += u * u;
      }
      w_square += w_sum;
      u_square += u_sum;
    }
    squares[2 * b] = w_square;
    squares[2 * b + 1] = u_square;
  }
}
extern "C" void apply(const int64_t* table, int64_t blocks, const float* first_factors,
                      const float* second_factors, const float* s, const float* rates) {
  #pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t* row = table + 6 * b;
    float* __restrict w = (float*)row[0];
    const float* __restrict m = (const float*)row[2];
    const float* __restrict v = (const float*)row[3];
    const float first = first_factors[row[5]], second = second_factors[row[5]];
    const float rate = rates[row[5]];
    #pragma omp simd
    for (int64_t i = 0; i < row[4]; ++i)
      w[i] -= rate * (m[i] * first / (std::sqrt(v[i]) * second + s[3]) + s[4] * w[i]);
  }
}
"""


def _scalars(c: Coefficients) -> np.ndarray:
    scale = 1.0 if c.gradient_scale is None else float(c.gradient_scale)
    values = [1 - c.beta1, c.beta2, 1 - c.beta2, c.eps, c.update_decay, c.gradient_decay, scale]
    return np.array(values, dtype=np.float32)


class CppBackend:
    """The loops of NumbaBackend in C++, compiled by g++ for this processor."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        source, library = Path(self._folder.name, "lamb.cpp"), Path(self._folder.name, "lamb.so")
        source.write_text(SOURCE)
        options = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
        command = ["g++", *options, "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(library))
        self._table = np.empty((0, 6), dtype=np.int64)

    def _call(self, loop: str, *arrays: np.ndarray) -> None:
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        table, rows = ctypes.c_void_p(self._table.ctypes.data), ctypes.c_int64(len(self._table))
        getattr(self._library, loop)(table, rows, *pointers)

    def moments(self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients) -> Tensor:
        c = coefficients
        self._table = pieces.block_table(tensors, BLOCK)
        squares = np.empty((len(self._table), 2))
        self._call("moments", c.first.numpy(), c.second.numpy(), _scalars(c), squares)
        totals = np.zeros((pieces.num_parameters, 2))
        np.add.at(totals, self._table[:, 5], squares)
        return torch.from_numpy(totals)

    def apply(
        self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients, rates: Tensor
    ) -> None:
        c = coefficients
        self._call("apply", c.first.numpy(), c.second.numpy(), _scalars(c), rates.numpy())


def _update(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, s: Tensor) -> Tensor:
    """s: (8,) first, second, 1 - beta1, beta2, 1 - beta2, eps, decay, rate"""
    return exp_avg * s[0] / (exp_avg_sq.sqrt() * s[1] + s[5]) + s[6] * weight


def _moments(
    weight: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, s: Tensor
) -> Tensor:
    exp_avg.copy_(exp_avg + s[2] * (gradient - exp_avg))
    exp_avg_sq.copy_(s[3] * exp_avg_sq + s[4] * gradient * gradient)
    update = _update(weight, exp_avg, exp_avg_sq, s)
    return torch.stack([weight.square().sum(), update.square().sum()])


def _apply(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, s: Tensor) -> None:
    weight.sub_(s[7] * _update(weight, exp_avg, exp_avg_sq, s))


class CompiledBackend:
    """A pure function with torch.compile (inductor's C++), called for each parameter and pass.

    Norms are summed in fp32 only, which is cheaper but not exact enough. Gradients aren't scaled.
    """

    def __init__(self) -> None:
        torch._dynamo.config.cache_size_limit = 64
        self._moments: Callable[..., Any] = torch.compile(_moments, dynamic=True)
        self._apply: Callable[..., Any] = torch.compile(_apply, dynamic=True)

    def _rows(self, tensors: GroupTensors, c: Coefficients, rates: Tensor) -> Any:
        columns = [
            c.first,
            c.second,
            *map(torch.tensor, (1 - c.beta1, c.beta2, 1 - c.beta2, c.eps)),
        ]
        columns += [torch.tensor(c.update_decay), rates]
        scalars = torch.stack([column.expand(len(rates)) for column in columns], dim=1)
        flat = [
            [tensor.view(-1) for tensor in held]
            for held in (tensors.weights, tensors.gradients, tensors.exp_avgs, tensors.exp_avg_sqs)
        ]
        return zip(*flat, scalars.unbind(), strict=True)

    def moments(self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients) -> Tensor:
        rows = self._rows(tensors, coefficients, torch.zeros(pieces.num_parameters))
        return torch.stack([self._moments(*row) for row in rows]).double()

    def apply(
        self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients, rates: Tensor
    ) -> None:
        for weight, _, exp_avg, exp_avg_sq, scalars in self._rows(tensors, coefficients, rates):
            self._apply(weight, exp_avg, exp_avg_sq, scalars)


def backends() -> dict[str, Passes]:
    """Name in the table -> backend."""
    return {"LAMB C++": CppBackend(), "LAMB torch.compile": CompiledBackend()}
