import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mslt_ds.data.compiled import key_of
from mslt_ds.data.order import permute


@given(st.integers(1, 3000), st.integers(0, 2**32))
@settings(max_examples=50)
def test_every_place_once(length, seed):
    places = permute(key_of(seed), np.arange(length), length)
    assert np.array_equal(np.sort(places), np.arange(length))


def test_a_part_is_that_of_the_whole():
    key, length = key_of("part"), 1000
    whole = permute(key, np.arange(length), length)
    assert np.array_equal(permute(key, np.arange(300, 310), length), whole[300:310])


def test_keys_give_unrelated_orders():
    length = 10_000
    first, second = (permute(key_of(name), np.arange(length), length) for name in "ab")
    assert (first == second).mean() < 0.001
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_neighbours_are_torn_apart():
    length = 100_000
    places = permute(key_of("neighbours"), np.arange(length), length)
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.02
    # Of n independent places, the mean distance is a third of the length.
    assert abs(np.abs(np.diff(places)).mean() / length - 1 / 3) < 0.01


def test_a_thousand_million_million_instances_need_no_table():
    length = 10**15
    places = permute(key_of("long"), np.arange(length - 1000, length), length)
    assert len(set(places.tolist())) == 1000
    assert places.min() >= 0 and places.max() < length
