"""Which examples go into which batch: buckets of like length, so that little is padding.

Pure. Each epoch is a fresh permutation, cut into pools of `POOL_BATCHES` batches; a pool is sorted by
length and cut into batches, and all batches are shuffled. Every example comes once an epoch, batches
stay random but for the length, and a batch is padded to its own longest example.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POOL_BATCHES = 50


def training_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of an epoch, as positions in `lengths` (tokens). The last may be smaller."""
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    sizes = np.asarray(lengths)
    pool = POOL_BATCHES * batch_size
    batches = [
        batch
        for start in range(0, len(order), pool)
        for batch in _cut(_by_length(order[start : start + pool], sizes), batch_size)
    ]
    return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """All examples by length, longest first: what doesn't fit into memory shows at once."""
    order = _by_length(np.arange(len(lengths)), np.asarray(lengths))
    return _cut(order[::-1], batch_size)


def sample(count: int, wanted: int | None, seed: int) -> list[int]:
    """`wanted` of `count` positions, drawn without repetition, in order; all if None or too few."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:wanted].tolist())


def _by_length(order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return order[np.argsort(lengths[order], kind="stable")]


def _cut(order: np.ndarray, size: int) -> list[list[int]]:
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]
