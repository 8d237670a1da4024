"""LAMB's two passes over memory on a CPU, compiled by numba.

A table of blocks (addresses, length, parameter) describes the work, so whole parameters and slices of
a flat partition run through the same two loops: moments, update and norms (4 reads, 2 writes), then
apply (3 reads, 1 write). torch's separate operations move three times as much. Norms are summed in
fp32 over `LANES` elements and in float64 beyond; in fp32 alone the sum is off by 1e-3 for an
embedding. The loops release the GIL and run in a thread pool of this module: numba's own parallel
back ends fail in a process that forks after their use, and data loaders fork.
"""

# numba's own stubs lack `carray` and don't know what `intrinsic` does to a signature.
# pyright: reportPrivateImportUsage=false, reportCallIssue=false

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from mslt_ds.optim.pieces import Coefficients, GroupTensors, Pieces

BLOCK = 1 << 16
"""Elements of one row of the table: 5 streams of 256 KiB."""
LANES = 2048
"""Elements whose squares are summed in fp32 before float64 takes over."""

# Sums may be reordered to vectorise, and multiply-add fused; NaN and infinity propagate.
_FAST = {"reassoc", "contract", "nsz"}


@intrinsic
def _pointer(typing_context, address):  # type: ignore[no-untyped-def]
    """int64 address -> void pointer, for `numba.carray`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _moments(
    table,  # int64 (blocks, 6): addresses of weight, gradient, exp_avg, exp_avg_sq; numel; parameter
    first_factors,  # float32 (parameters,): bias correction of exp_avg
    second_factors,  # float32 (parameters,): bias correction of sqrt(exp_avg_sq)
    scalars,  # float32 (7,): 1 - beta1, beta2, 1 - beta2, eps, decay, gradient decay, gradient scale
    squares,  # float64 (blocks, 2), out: squared norms of weight and update
    start,
    stop,
):  # pragma: no cover - runs compiled
    keep1, beta2, keep2, eps, decay, gradient_decay, scale = scalars
    for block in range(start, stop):
        first = first_factors[table[block, 5]]
        second = second_factors[table[block, 5]]
        weight_square = 0.0
        update_square = 0.0
        for low in range(0, table[block, 4], LANES):
            numel = min(LANES, table[block, 4] - low)
            weight = numba.carray(_pointer(table[block, 0] + 4 * low), (numel,), np.float32)
            gradient = numba.carray(_pointer(table[block, 1] + 4 * low), (numel,), np.float32)
            exp_avg = numba.carray(_pointer(table[block, 2] + 4 * low), (numel,), np.float32)
            exp_avg_sq = numba.carray(_pointer(table[block, 3] + 4 * low), (numel,), np.float32)
            w_sum = np.float32(0.0)
            u_sum = np.float32(0.0)
            for i in range(numel):  # from 0: an index that could be negative isn't vectorised
                w = weight[i]
                g = gradient[i] * scale + gradient_decay * w
                m = exp_avg[i] + keep1 * (g - exp_avg[i])
                v = beta2 * exp_avg_sq[i] + keep2 * g * g
                exp_avg[i] = m
                exp_avg_sq[i] = v
                u = m * first / (np.sqrt(v) * second + eps) + decay * w
                w_sum += w * w
                u_sum += u * u
            weight_square += np.float64(w_sum)
            update_square += np.float64(u_sum)
        squares[block, 0] = weight_square
        squares[block, 1] = update_square


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _apply(
    table,
    first_factors,
    second_factors,
    rates,  # float32 (parameters,): learning rate x trust ratio
    scalars,
    start,
    stop,
):  # pragma: no cover - runs compiled
    eps, decay = scalars[3], scalars[4]
    for block in range(start, stop):
        numel = table[block, 4]
        weight = numba.carray(_pointer(table[block, 0]), (numel,), dtype=np.float32)
        exp_avg = numba.carray(_pointer(table[block, 2]), (numel,), dtype=np.float32)
        exp_avg_sq = numba.carray(_pointer(table[block, 3]), (numel,), dtype=np.float32)
        first = first_factors[table[block, 5]]
        second = second_factors[table[block, 5]]
        rate = rates[table[block, 5]]
        for i in range(numel):
            w = weight[i]
            u = exp_avg[i] * first / (np.sqrt(exp_avg_sq[i]) * second + eps) + decay * w
            weight[i] = w - rate * u


class NumbaBackend:
    """`moments`, then `apply`, for one group of fp32 tensors on the CPU at a time."""

    def __init__(self) -> None:
        self._table = np.empty((0, 6), dtype=np.int64)
        self._scalars = np.empty(7, dtype=np.float32)

    def moments(self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients) -> Tensor:
        """Advance the moments; float64 (num_parameters, 2): squared norms of weight and update."""
        c = coefficients
        scale = 1.0 if c.gradient_scale is None else float(c.gradient_scale)
        self._scalars = np.array(
            [1 - c.beta1, c.beta2, 1 - c.beta2, c.eps, c.update_decay, c.gradient_decay, scale],
            dtype=np.float32,
        )
        self._table = pieces.block_table(tensors, BLOCK)
        squares = np.empty((len(self._table), 2))
        factors = c.first.numpy(), c.second.numpy()
        _in_threads(_moments, self._table, *factors, self._scalars, squares)
        totals = np.zeros((pieces.num_parameters, 2))
        np.add.at(totals, self._table[:, 5], squares)
        return torch.from_numpy(totals)

    def apply(
        self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients, rates: Tensor
    ) -> None:
        """weight -= rate * update; rates: fp32 (num_parameters,), learning rate x trust ratio."""
        factors = coefficients.first.numpy(), coefficients.second.numpy()
        _in_threads(_apply, self._table, *factors, rates.numpy(), self._scalars)


_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a child has none of the threads


def _in_threads(loop: Callable[..., None], table: np.ndarray, *arguments: np.ndarray) -> None:
    """Run a loop over all rows of the table with as many threads as torch uses."""
    threads = min(torch.get_num_threads(), max(1, len(table)))
    cuts = [len(table) * i // threads for i in range(threads + 1)]
    others = []
    if threads > 1:
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(threads - 1, "lamb")
        pool = _pools[threads]
        others = [
            pool.submit(loop, table, *arguments, cuts[i], cuts[i + 1]) for i in range(1, threads)
        ]
    loop(table, *arguments, cuts[0], cuts[1])
    for other in others:
        other.result()
