"""The work of one LAMB step on one parameter group, as contiguous pieces of parameters.

A piece is a contiguous part of one parameter inside one tensor: a whole parameter or its slice in a
ZeRO partition. A parameter has at most one piece on a rank, since it and the rank's partition are both
contiguous in the flat buffer.
"""

# torch's multi-tensor operations have an underscore, but no other name.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mslt_ds.optim.layout import GroupLayout

NORM_BLOCK = 1 << 16
"""Elements whose norm torch takes in fp32 on a CPU; the blocks' squares are summed in float64."""


@dataclass(frozen=True, eq=False)
class GroupTensors:
    """A group's tensors in one step: entry i of each tuple has the same shape and type."""

    weights: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    exp_avgs: tuple[Tensor, ...]
    exp_avg_sqs: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Where the pieces lie; each array is int64 (pieces,)."""

    num_parameters: int
    parameter: np.ndarray
    """Index of the parameter, in [0, num_parameters)."""
    tensor: np.ndarray
    """Index of the tensor that holds the piece."""
    start: np.ndarray
    """Elements before the piece in its tensor."""
    numel: np.ndarray

    @classmethod
    def whole(cls, numels: Sequence[int]) -> Pieces:
        """One piece for each tensor: every parameter has its own."""
        index = np.arange(len(numels), dtype=np.int64)
        numel = np.array(numels, dtype=np.int64)
        return cls(len(numels), index, index, np.zeros_like(index), numel)

    @classmethod
    def of_layout(cls, layout: GroupLayout) -> Pieces:
        """This rank's slices of a group."""
        columns = [(s.parameter, s.master, s.master_start, s.numel) for s in layout.slices]
        table = np.array(columns, dtype=np.int64).reshape(-1, 4)
        return cls(len(layout.names), *(np.ascontiguousarray(c) for c in table.T))

    def views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each piece of `tensors`, as a view (a whole tensor keeps its shape)."""
        pieces = []
        for index, start, numel in zip(
            self.tensor.tolist(), self.start.tolist(), self.numel.tolist(), strict=True
        ):
            tensor = tensors[index]
            whole = tensor.numel() == numel
            pieces.append(tensor if whole else tensor.view(-1).narrow(0, start, numel))
        return pieces

    def block_table(self, tensors: GroupTensors, size: int) -> np.ndarray:
        """int64 (blocks, 6): the pieces cut into blocks of at most `size` elements.

        Columns: addresses of weight, gradient, exp_avg and exp_avg_sq; elements; parameter.
        """
        counts = -(-self.numel // size)
        piece = np.repeat(np.arange(len(counts)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        start = (np.arange(len(piece)) - first) * size  # of the block in its piece
        table = np.empty((len(piece), 6), dtype=np.int64)
        for column, held in enumerate(
            (tensors.weights, tensors.gradients, tensors.exp_avgs, tensors.exp_avg_sqs)
        ):
            base = np.array([t.data_ptr() for t in held], dtype=np.int64)
            table[:, column] = base[self.tensor[piece]] + 4 * (self.start[piece] + start)
        table[:, 4] = np.minimum(size, self.numel[piece] - start)
        table[:, 5] = self.parameter[piece]
        return table


@dataclass(frozen=True)
class Coefficients:
    """The numbers in the elementwise formula. Tensors stay on the device, so nothing synchronises."""

    first: Tensor
    """fp32 (num_parameters,): factor on exp_avg, the bias correction."""
    second: Tensor
    """fp32 (num_parameters,): factor on sqrt(exp_avg_sq)."""
    gradient_scale: Tensor | None
    """(): factor on the gradient; None for 1."""
    beta1: float
    beta2: float
    eps: float
    update_decay: float
    gradient_decay: float


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """float64 (len(tensors),): the sum of squares of each.

    On a CPU, torch's fp32 norm is off by 1e-3 for 23 million elements and by 2e-7 for blocks of 64 k,
    so blocks are summed in float64. On a GPU torch sums in blocks itself.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    if tensors[0].is_cuda:
        return torch.stack(torch._foreach_norm(list(tensors))).double().square()
    return torch.stack([_squared_norm(tensor) for tensor in tensors])


def _squared_norm(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    in_blocks = flat.numel() // NORM_BLOCK * NORM_BLOCK
    total = torch.linalg.vector_norm(flat[in_blocks:]).double().square()
    if in_blocks:
        blocks = flat[:in_blocks].view(-1, NORM_BLOCK)
        total += torch.linalg.vector_norm(blocks, dim=1).double().square().sum()
    return total
