"""Buckets: every example once an epoch, the same by the same seed, and little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mslt_ds.evaluation.batches import evaluation_batches, sample, training_batches

LENGTHS = st.lists(st.integers(1, 128), min_size=1, max_size=400)


@given(lengths=LENGTHS, size=st.integers(1, 40), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_every_example_once(lengths, size, seed, epoch):
    for batches in (
        training_batches(lengths, size, seed, epoch),
        evaluation_batches(lengths, size),
    ):
        assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
        assert all(0 < len(rows) <= size for rows in batches)
        assert len(batches) == -(-len(lengths) // size)


def test_seed_and_epoch_decide():
    lengths = list(range(1, 101))
    first = training_batches(lengths, 8, 1, 0)
    assert first == training_batches(lengths, 8, 1, 0)
    assert first != training_batches(lengths, 8, 1, 1)
    assert first != training_batches(lengths, 8, 2, 0)


def test_a_pool_is_sorted_and_pools_are_mixed():
    lengths = np.random.default_rng(0).integers(5, 120, 4000).tolist()
    batches = training_batches(lengths, 16, 0, 0)
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)
    assert padded < 1.06 * sum(lengths)
    # Batches don't come by length, and what shares a batch changes with the epoch.
    means = [np.mean([lengths[row] for row in rows]) for rows in batches]
    assert np.mean(np.diff(means) > 0) < 0.6
    other = {frozenset(rows) for rows in training_batches(lengths, 16, 0, 1)}
    assert not other.intersection(map(frozenset, batches))


def test_evaluation_begins_with_the_longest():
    assert evaluation_batches([3, 9, 5, 7], 2) == [[1, 3], [2, 0]]


def test_a_sample_is_drawn_once():
    assert sample(5, None, 0) == sample(5, 5, 0) == [0, 1, 2, 3, 4]
    drawn = sample(1000, 100, 0)
    assert drawn == sorted(set(drawn)) == sample(1000, 100, 0)
    assert len(drawn) == 100
