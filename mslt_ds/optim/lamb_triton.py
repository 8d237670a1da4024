"""LAMB's two passes over memory on a GPU: one launch each for a whole group, in Triton.

Notable: the block table of the CPU path (addresses, length, parameter) lives on the device, so one
grid covers tensors of any number and size, whole parameters and slices of a ZeRO partition alike.
The table is sent again only when an address has changed; a step in between reads nothing from the
host, waits for nothing and can be captured in a CUDA graph (with static gradients, and `lr` a
tensor if it is to change). Norms are reproducible: each program writes its block's sums to a place
of its own, no atomics. Streams: 6 in the first pass, 4 in the second, 40 bytes for each element.
"""

# A Triton kernel is no Python function to a type checker.
# pyright: reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# Triton comes with a CUDA torch only.
# pyright: reportMissingImports=false

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mslt_ds.optim.pieces import Coefficients, GroupTensors, Pieces

BLOCK = 1 << 14
"""Elements of one program: 5 streams of 64 KiB."""
TILE = 1 << 11
"""Elements that a program works on at a time."""


@triton.jit
def _moments(
    table,  # int64 (blocks, 7): 4 addresses, numel, parameter, place in squares
    first_factors,  # fp32 (parameters,)
    second_factors,  # fp32 (parameters,)
    gradient_scale,  # fp32 (1,)
    squares,  # fp32 (places, 2), out: squared norms of weight and update
    keep1,
    beta2,
    keep2,
    eps,
    decay,
    gradient_decay,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    row = table + tl.program_id(0).to(tl.int64) * 7
    weight = tl.load(row).to(tl.pointer_type(tl.float32))
    gradient = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    exp_avg = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    exp_avg_sq = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    numel = tl.load(row + 4)
    parameter = tl.load(row + 5)
    place = squares + tl.load(row + 6) * 2
    first = tl.load(first_factors + parameter)
    second = tl.load(second_factors + parameter)
    scale = tl.load(gradient_scale)
    w_sum = tl.zeros((TILE,), dtype=tl.float32)
    u_sum = tl.zeros((TILE,), dtype=tl.float32)
    for start in range(0, BLOCK, TILE):
        index = start + tl.arange(0, TILE)
        inside = index < numel
        w = tl.load(weight + index, mask=inside, other=0.0)
        g = tl.load(gradient + index, mask=inside, other=0.0) * scale + gradient_decay * w
        m = tl.load(exp_avg + index, mask=inside, other=0.0)
        v = tl.load(exp_avg_sq + index, mask=inside, other=0.0)
        m += keep1 * (g - m)
        v = beta2 * v + keep2 * g * g
        tl.store(exp_avg + index, m, mask=inside)
        tl.store(exp_avg_sq + index, v, mask=inside)
        u = m * first / (tl.sqrt_rn(v) * second + eps) + decay * w
        # eps of 0 makes 0 / 0 of what lies outside.
        u_sum += tl.where(inside, u * u, 0.0)
        w_sum += w * w
    tl.store(place, tl.sum(w_sum, axis=0))
    tl.store(place + 1, tl.sum(u_sum, axis=0))


@triton.jit
def _apply(
    table,
    first_factors,
    second_factors,
    rates,  # fp32 (parameters,): learning rate x trust ratio
    eps,
    decay,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    row = table + tl.program_id(0).to(tl.int64) * 7
    weight = tl.load(row).to(tl.pointer_type(tl.float32))
    exp_avg = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    exp_avg_sq = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    numel = tl.load(row + 4)
    parameter = tl.load(row + 5)
    first = tl.load(first_factors + parameter)
    second = tl.load(second_factors + parameter)
    rate = tl.load(rates + parameter)
    for start in range(0, BLOCK, TILE):
        index = start + tl.arange(0, TILE)
        inside = index < numel
        w = tl.load(weight + index, mask=inside, other=0.0)
        m = tl.load(exp_avg + index, mask=inside, other=0.0)
        v = tl.load(exp_avg_sq + index, mask=inside, other=0.0)
        u = m * first / (tl.sqrt_rn(v) * second + eps) + decay * w
        tl.store(weight + index, w - rate * u, mask=inside)


class TritonBackend:
    """`moments`, then `apply`, for one group of fp32 tensors on a GPU at a time."""

    name = "triton"

    def __init__(self) -> None:
        # By the group's first weight: the table as it was sent, and on the device.
        self._tables: dict[int, tuple[np.ndarray, Tensor]] = {}

    def moments(self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients) -> Tensor:
        """Advance the moments; float64 (num_parameters, 2): squared norms of weight and update."""
        c = coefficients
        table, width = self._table(pieces, tensors)
        squares = torch.zeros(pieces.num_parameters, width, 2, device=table.device)
        scale = torch.ones_like(c.first[:1]) if c.gradient_scale is None else c.gradient_scale
        if len(table):
            _moments[(len(table),)](
                table,
                c.first,
                c.second,
                scale.to(table.device, torch.float32),
                squares,
                1.0 - c.beta1,
                c.beta2,
                1.0 - c.beta2,
                c.eps,
                c.update_decay,
                c.gradient_decay,
                BLOCK=BLOCK,
                TILE=TILE,
            )
        return squares.sum(dim=1, dtype=torch.float64)

    def apply(
        self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients, rates: Tensor
    ) -> None:
        """weight -= rate * update; rates: fp32 (num_parameters,), learning rate x trust ratio."""
        c = coefficients
        table, _ = self._table(pieces, tensors)
        if len(table):
            _apply[(len(table),)](
                table, c.first, c.second, rates, c.eps, c.update_decay, BLOCK=BLOCK, TILE=TILE
            )

    def _table(self, pieces: Pieces, tensors: GroupTensors) -> tuple[Tensor, int]:
        """The block table on the device, and the most blocks that a parameter has."""
        first = tensors.weights[0]
        width = -(-int(pieces.numel.max(initial=1)) // BLOCK)
        blocks = pieces.block_table(tensors, BLOCK)
        starts = np.searchsorted(blocks[:, 5], blocks[:, 5])  # parameters come in order
        place = blocks[:, 5] * width + np.arange(len(blocks)) - starts
        table = np.concatenate([blocks, place[:, None]], axis=1)
        sent = self._tables.get(id(first))
        if sent is None or not np.array_equal(sent[0], table):
            sent = (table, torch.from_numpy(table).to(first.device))
            self._tables[id(first)] = sent
        return sent[1], width
