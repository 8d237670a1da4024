"""The order of an epoch: a permutation that is computed without a table.

It is a Feistel network on the smallest even number of bits that holds the domain, applied repeatedly
until the result lies inside (cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"). The place of instance n of an epoch in its index takes O(1) on any rank, at any step.
"""

from __future__ import annotations

import numpy as np

from mslt_ds.data.compiled import compiled, derive, mix

_ROUNDS = 6


@compiled
def permute(key: np.uint64, positions: np.ndarray, length: int) -> np.ndarray:
    """The places in the index of the instances at `positions`, both (n,) int64 in [0, length).

    For each (key, length) this is a bijection.
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
            # The domain is at most four times `length`, and the walk is a cycle through its start.
            if place < np.uint64(length):
                break
        places[i] = place
    return places
