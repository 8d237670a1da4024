"""The global order of an epoch: a permutation that needs no table.

A Feistel network on the smallest even number of bits that holds the domain, walked on until it
lands inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Where instance n
of an epoch lies in its index is computed in O(1), on any rank, at any step, for any length.
"""

from __future__ import annotations

import numpy as np

from mslt_ds.data.compiled import compiled, derive, mix

_ROUNDS = 6


@compiled
def permute(key: np.uint64, positions: np.ndarray, length: int) -> np.ndarray:
    """Where the instances at `positions`, (n,) int64 in [0, length), lie in the index, (n,) int64.

    For one (key, length), different positions lie at different places.
    """
    half = np.uint64(1)
    while (np.uint64(1) << (half + half)) < np.uint64(length):
        half += np.uint64(1)
    low_bits = (np.uint64(1) << half) - np.uint64(1)
    round_keys = np.empty(_ROUNDS, np.uint64)
    for i in range(_ROUNDS):
        round_keys[i] = derive(key, i)
    places = np.empty(len(positions), np.int64)
    for i in range(len(positions)):
        place = np.uint64(positions[i])
        while True:
            left, right = place >> half, place & low_bits
            for j in range(_ROUNDS):
                left, right = right, left ^ (mix(right ^ round_keys[j]) & low_bits)
            place = (left << half) | right
            # The domain is at most four times `length`; the walk is a cycle through the start.
            if place < np.uint64(length):
                break
        places[i] = place
    return places
