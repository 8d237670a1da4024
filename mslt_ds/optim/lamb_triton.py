"""LAMB's two passes over memory on a GPU: one launch each for a whole group, in Triton.

The table of blocks (addresses, length, parameter) that lamb_numba.py uses lies on the device here, so
one grid covers any number of tensors of any size, whole parameters and slices of a ZeRO partition
alike. The table is built and copied again only if an address has changed. Other steps copy nothing
from the host, do not synchronise, and can be captured in a CUDA graph (with static gradients, and with
`lr` as a tensor if it changes). Norms are reproducible: each program writes its block's sums to its
own place, without atomics. The first pass has 6 streams, the second 4: 40 bytes for each element.
"""

# A Triton kernel is no Python function to a type checker.
# pyright: reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# Triton is for Linux only.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.optim.pieces import Coefficients, GroupTensors, Pieces

BLOCK = 1 << 14
"""Elements of one program: 5 streams of 64 KiB."""
TILE = 1 << 11
"""Elements that a program works on at a time: 16 for each thread, 256 bytes of loads in flight."""


@triton.jit
def _stream(row, column: tl.constexpr, VECTOR: tl.constexpr):
    """The address in a row's column, as a pointer to fp32."""
    pointer = tl.load(row + column).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 4 * VECTOR)


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
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,  # elements: divides every numel, and every address in units of 4 bytes
):
    row = table + tl.program_id(0).to(tl.int64) * 7
    weight = _stream(row, 0, VECTOR)
    gradient = _stream(row, 1, VECTOR)
    exp_avg = _stream(row, 2, VECTOR)
    exp_avg_sq = _stream(row, 3, VECTOR)
    numel = tl.multiple_of(tl.load(row + 4).to(tl.int32), VECTOR)
    parameter = tl.load(row + 5)
    place = squares + tl.load(row + 6) * 2
    first = tl.load(first_factors + parameter)
    second = tl.load(second_factors + parameter)
    scale = tl.load(gradient_scale)
    w_sum = tl.zeros((TILE,), dtype=tl.float32)
    u_sum = tl.zeros((TILE,), dtype=tl.float32)
    for start in range(0, numel, TILE):
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
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
):
    row = table + tl.program_id(0).to(tl.int64) * 7
    weight = _stream(row, 0, VECTOR)
    exp_avg = _stream(row, 2, VECTOR)
    exp_avg_sq = _stream(row, 3, VECTOR)
    numel = tl.multiple_of(tl.load(row + 4).to(tl.int32), VECTOR)
    parameter = tl.load(row + 5)
    first = tl.load(first_factors + parameter)
    second = tl.load(second_factors + parameter)
    rate = tl.load(rates + parameter)
    for start in range(0, numel, TILE):
        index = start + tl.arange(0, TILE)
        inside = index < numel
        w = tl.load(weight + index, mask=inside, other=0.0)
        m = tl.load(exp_avg + index, mask=inside, other=0.0)
        v = tl.load(exp_avg_sq + index, mask=inside, other=0.0)
        u = m * first / (tl.sqrt_rn(v) * second + eps) + decay * w
        tl.store(weight + index, w - rate * u, mask=inside)


class _Blocks(NamedTuple):
    """A block table on the device."""

    made_of: np.ndarray
    """int64: the addresses and pieces that it was built from."""
    table: Tensor
    """int64 (blocks, 7), on the device: the columns are described at `_moments`."""
    width: int
    """The largest number of blocks of a parameter: the places that each has in `squares`."""
    vector: int
    """Elements that one instruction may move: 4, 2 or 1."""


class TritonBackend:
    """`moments`, then `apply`, for one group of fp32 tensors on a GPU at a time."""

    def __init__(self) -> None:
        # The key is a group's first weight; the entry is dropped with it.
        self._sent: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._captured: list[Tensor] = []
        self._blocks: _Blocks

    def moments(self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients) -> Tensor:
        """Advance the moments; float64 (num_parameters, 2): squared norms of weight and update."""
        c = coefficients
        self._blocks = self._blocks_of(pieces, tensors)
        table, width = self._blocks.table, self._blocks.width
        squares = torch.zeros(pieces.num_parameters, width, 2, device=table.device)
        scale = torch.ones_like(c.first[:1]) if c.gradient_scale is None else c.gradient_scale
        if len(table):
            with torch.cuda.device_of(table):
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
                    TILE=TILE,
                    VECTOR=self._blocks.vector,
                )
        return squares.sum(dim=1, dtype=torch.float64)

    def apply(
        self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients, rates: Tensor
    ) -> None:
        """weight -= rate * update; rates: fp32 (num_parameters,), learning rate x trust ratio."""
        c = coefficients
        table = self._blocks.table
        if len(table):
            with torch.cuda.device_of(table):
                _apply[(len(table),)](
                    table,
                    c.first,
                    c.second,
                    rates,
                    c.eps,
                    c.update_decay,
                    TILE=TILE,
                    VECTOR=self._blocks.vector,
                )

    def _blocks_of(self, pieces: Pieces, tensors: GroupTensors) -> _Blocks:
        """The table for these pieces and addresses: the last one if it still holds, else a new one.

        All addresses and pieces are compared, so a table isn't reused when an address was freed and
        given to another tensor.
        """
        held = (tensors.weights, tensors.gradients, tensors.exp_avgs, tensors.exp_avg_sqs)
        addresses = np.array([t.data_ptr() for stream in held for t in stream], dtype=np.int64)
        made_of = np.concatenate(
            [addresses, pieces.parameter, pieces.tensor, pieces.start, pieces.numel]
        )
        first = tensors.weights[0]
        capturing = first.is_cuda and torch.cuda.is_current_stream_capturing()
        blocks = self._sent.get(first)
        if blocks is None or not np.array_equal(blocks.made_of, made_of):
            if capturing:
                raise EnvironmentProblem(
                    "Lamb: a step is being captured in a CUDA graph, but tensors aren't where the "
                    "last step had them; make a step before with these gradients, and keep them "
                    "(zero_grad(set_to_none=False))"
                )
            blocks = self._sent[first] = _send(pieces, tensors, made_of)
        if capturing:  # replays of the graph read this table, even if later steps build another
            self._captured.append(blocks.table)
        return blocks


def _send(pieces: Pieces, tensors: GroupTensors, made_of: np.ndarray) -> _Blocks:
    """Build the block table and copy it to the device, without synchronising."""
    width = -(-int(pieces.numel.max(initial=1)) // BLOCK)
    blocks = pieces.block_table(tensors, BLOCK)
    starts = np.searchsorted(blocks[:, 5], blocks[:, 5])  # parameters come in order
    place = blocks[:, 5] * width + np.arange(len(blocks)) - starts
    table = torch.from_numpy(np.concatenate([blocks, place[:, None]], axis=1))
    device = tensors.weights[0].device
    if device.type == "cuda":
        table = table.pin_memory()
    return _Blocks(made_of, table.to(device, non_blocking=True), width, _vector(blocks))


def _vector(blocks: np.ndarray) -> int:
    """The largest of 4, 2 and 1 elements that divides the lengths and alignments of all blocks.

    It is 4 (loads of 16 bytes) for whole parameters of a Transformer. It may be 2 or 1 for slices of
    a ZeRO partition, if the world size isn't a power of two or a group has a small odd parameter.
    """
    alignments = np.append(blocks[:, :4].ravel() // 4, blocks[:, 4])
    return next(n for n in (4, 2, 1) if not (alignments % n).any())
