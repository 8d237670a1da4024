"""The step of every rank, played in one process: any shapes, world size 1 to 5, any arrangement.

What the launched tests do with a few arrangements and real engines, here with many: the ranks'
slices go through the backends, their squares are summed as the all-reduce would, and the weights are
those of the unsharded reference.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mslt_ds.optim.lamb_reference import (
    LambOptions,
    bias_corrections,
    lamb_reference_step,
    trust_ratios,
)
from mslt_ds.optim.layout import GroupLayout, Slice, partition_slices
from mslt_ds.optim.layout_zero3 import shard_slices
from mslt_ds.optim.passes import make
from mslt_ds.optim.pieces import Coefficients, GroupTensors, Pieces
from tests.unit.optim.backends_here import BACKENDS, fewer

LR, BETAS, EPS, DECAY, STEPS = 0.01, (0.9, 0.99), 1e-6, 0.1, 3
PRIMES = [1, 2, 3, 5, 7, 11, 13, 17, 31, 97, 211]


class Rank:
    """One rank's part of a group: its slices, its flat master, its moments."""

    def __init__(self, weights: list[Tensor], slices: tuple[Slice, ...], numel: int) -> None:
        self.slices = slices
        names = tuple(str(index) for index in range(len(weights)))
        parameters = tuple(nn.Parameter(weight) for weight in weights)
        # Padding holds what must not be read: it would show in the norms.
        self.master = torch.full((numel,), 1e3)
        self.scatter(weights, self.master)
        self.pieces = Pieces.of_layout(
            GroupLayout(names, parameters, (self.master,), (0,) * len(weights), slices)
        )
        self.gradient = torch.full((numel,), 1e3)
        self.moments = torch.zeros(numel), torch.zeros(numel)

    def scatter(self, wholes: list[Tensor], flat: Tensor) -> None:
        for piece in self.slices:
            flat[piece.master_start : piece.master_start + piece.numel] = wholes[
                piece.parameter
            ].view(-1)[piece.parameter_start : piece.parameter_start + piece.numel]

    def gather(self, wholes: list[Tensor]) -> None:
        for piece in self.slices:
            wholes[piece.parameter].view(-1)[
                piece.parameter_start : piece.parameter_start + piece.numel
            ] = self.master[piece.master_start : piece.master_start + piece.numel]

    @property
    def tensors(self) -> GroupTensors:
        return GroupTensors(
            (self.master,), (self.gradient,), (self.moments[0],), (self.moments[1],)
        )


def coefficients(step: int, count: int) -> Coefficients:
    steps = torch.full((count,), float(step), dtype=torch.float64)
    first, second = bias_corrections(steps, BETAS, LambOptions())
    return Coefficients(first.float(), second.float(), None, *BETAS, EPS, DECAY, 0.0)


def check(ranks: list[Rank], weights: list[Tensor], kind: str) -> None:
    """Some steps of all ranks against the reference in fp64."""
    backends: list[Any] = [make(kind) for _ in ranks]
    expected = {str(index): weight.double() for index, weight in enumerate(weights)}
    state: dict[str, tuple[Tensor, Tensor, int]] = {}
    generator = torch.Generator().manual_seed(2)
    for step in range(1, STEPS + 1):
        gradients = [torch.randn(weight.shape, generator=generator) for weight in weights]
        factors = coefficients(step, len(weights))
        squares = torch.zeros(len(weights), 2, dtype=torch.float64)
        for rank, backend in zip(ranks, backends, strict=True):
            rank.scatter(gradients, rank.gradient)
            squares += backend.moments(rank.pieces, rank.tensors, factors)
        ratios = trust_ratios(squares[:, 0], squares[:, 1], LambOptions(), adapt=True)
        for rank, backend in zip(ranks, backends, strict=True):
            backend.apply(rank.pieces, rank.tensors, factors, (LR * ratios).float())
        expected, state, _ = lamb_reference_step(
            expected,
            {str(index): gradient.double() for index, gradient in enumerate(gradients)},
            state,
            lr=LR,
            betas=BETAS,
            eps=EPS,
            weight_decay=dict.fromkeys(expected, DECAY),
            options=LambOptions(),
        )
    found = [torch.full_like(weight, math.nan) for weight in weights]
    for rank in ranks:
        rank.gather(found)
    for index, weight in enumerate(found):
        torch.testing.assert_close(weight.double(), expected[str(index)], rtol=1e-6, atol=1e-6)


numels_drawn = st.lists(
    st.one_of(st.sampled_from(PRIMES), st.integers(1, 300)), min_size=1, max_size=8
)
kinds = pytest.mark.parametrize("kind", BACKENDS)


def drawn(numels: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(numel, generator=generator) for numel in numels]


@kinds
@settings(max_examples=fewer(40))
@given(
    numels=numels_drawn,
    world_size=st.integers(1, 5),
    alignment=st.sampled_from([1, 2, 4, 7]),
    gap=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
def test_flat_partitions(
    kind: str, numels: list[int], world_size: int, alignment: int, gap: int, order: Any
) -> None:
    """ZeRO 1 and 2: one buffer in any order, with gaps, cut without regard to parameters."""
    places = list(range(len(numels)))
    order.shuffle(places)
    offsets, end = [0] * len(numels), 0
    for index in places:
        offsets[index] = end
        end += numels[index] + gap
    partition = -(-end // (alignment * world_size)) * alignment
    weights = drawn(numels)
    ranks = [
        Rank(weights, partition_slices(offsets, numels, rank * partition, partition), partition)
        for rank in range(world_size)
    ]
    check(ranks, weights, kind)


@kinds
@settings(max_examples=fewer(40))
@given(numels=numels_drawn, world_size=st.integers(1, 5))
def test_shards(kind: str, numels: list[int], world_size: int) -> None:
    """ZeRO 3: every parameter cut by itself, the last shards padded or empty."""
    partition = sum(-(-numel // world_size) for numel in numels)
    weights = drawn(numels)
    ranks = [
        Rank(weights, shard_slices(numels, rank, world_size)[1], partition)
        for rank in range(world_size)
    ]
    check(ranks, weights, kind)
