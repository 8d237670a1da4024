"""The arithmetic of partitions: no element of a parameter is lost, doubled or misplaced."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mslt_ds.optim.layout import partition_slices


@given(
    numels=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    gaps=st.lists(st.integers(0, 5), min_size=8, max_size=8),
    world_size=st.integers(1, 5),
    alignment=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_slices_of_all_ranks_hold_each_element_once(
    numels: list[int], gaps: list[int], world_size: int, alignment: int, order
) -> None:
    places = list(range(len(numels)))
    order.shuffle(places)  # a flat buffer in another order, as with round-robin gradients
    offsets = [0] * len(numels)
    end = 0
    for index in places:
        offsets[index] = end
        end += numels[index] + gaps[index]
    total = -(-end // (alignment * world_size)) * alignment * world_size
    partition = total // world_size

    flat = torch.full((total,), -1)
    for index, (offset, numel) in enumerate(zip(offsets, numels, strict=True)):
        flat[offset : offset + numel] = 1000 * index + torch.arange(numel)

    found = []
    for rank in range(world_size):
        mine = flat[rank * partition : (rank + 1) * partition]
        for piece in partition_slices(offsets, numels, rank * partition, partition):
            values = mine[piece.master_start : piece.master_start + piece.numel]
            first = 1000 * piece.parameter + piece.parameter_start
            assert values.tolist() == list(range(first, first + piece.numel))
            found += values.tolist()
    assert sorted(found) == [
        1000 * index + element for index, numel in enumerate(numels) for element in range(numel)
    ]
