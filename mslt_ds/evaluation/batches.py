"""Batches of examples of similar length, which need little padding.

All functions are pure. Each epoch draws a new permutation of the examples and divides it into pools of
`POOL_BATCHES` batches; each pool is sorted by length and divided into batches, and the batches of all
pools are shuffled. Every example occurs once in an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POOL_BATCHES = 50


def training_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of an epoch, as positions in `lengths` (tokens). Some may be smaller than the rest."""
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
    """All examples by length, the longest first, so that a lack of memory shows in the first batch."""
    order = _by_length(np.arange(len(lengths)), np.asarray(lengths))
    return _cut(order[::-1], batch_size)


def sample(count: int, wanted: int | None, seed: int) -> list[int]:
    """`wanted` of `count` positions, drawn without repetition, in rising order.

    All positions if `wanted` is None or not below `count`.
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:wanted].tolist())


def _by_length(order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return order[np.argsort(lengths[order], kind="stable")]


def _cut(order: np.ndarray, size: int) -> list[list[int]]:
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]
