import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mslt_ds
from mslt_ds.data import compiled
from tests.unit.data import reference

words = st.integers(0, 2**64 - 1)


@given(words, st.integers(-1, 2**40))
def test_words_are_mixed_as_in_splitmix64(key, number):
    assert compiled.mix(np.uint64(key)) == reference.mix(key)
    assert compiled.derive(np.uint64(key), number) == reference.derive(key, number)


def test_known_values_of_splitmix64():
    """The first outputs for seed 1234567, as its authors publish them."""
    state = np.array([1234567], np.uint64)
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    assert compiled.mix(state[0]) == 6457827717110365317


@given(words, st.integers(1, 2**31))
def test_draws_are_those_of_the_reference_and_in_range(key, bound):
    state = np.array([key], np.uint64)
    draws = reference.Splitmix(key)
    for _ in range(5):
        value = compiled.uniform(state)
        assert value == draws.uniform() and 0 <= value < 1
        whole = compiled.below(state, bound)
        assert whole == draws.below(bound) and 0 <= whole < bound


def test_keys_tell_values_apart():
    parts = [("a", 1), ("a", 2), ("a1",), ("a", "1"), (1, 0.5), (1, 0.25)]
    assert len({int(compiled.key_of(*part)) for part in parts}) == len(parts)


def test_compiles_where_no_cache_folder_can_be_written(monkeypatch: pytest.MonkeyPatch):
    njit = numba.njit

    def njit_without_cache(*arguments, cache=False, **options):
        if cache:
            return lambda function: (_ for _ in ()).throw(RuntimeError("no locator available"))
        return njit(*arguments, **options)

    monkeypatch.setattr(numba, "njit", njit_without_cache)
    assert compiled.compiled(lambda value: value + 1)(1) == 2


def test_code_kept_on_disk_follows_changes_of_other_modules(tmp_path):
    """`order.permute` has `compiled.mix` compiled into it."""
    package = tmp_path / "mslt_ds"
    shutil.copytree(
        Path(mslt_ds.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    code = (
        "import numpy as np; from mslt_ds.data.order import permute; "
        "print(permute(np.uint64(1), np.arange(8), 1000).tolist())"
    )

    def places() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        environment.pop("NUMBA_CACHE_DIR", None)
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    before = places()
    assert list((package / "data/__pycache__").glob("order.permute*.nbi"))
    module = package / "data/compiled.py"
    text = module.read_text()
    assert "0xBF58476D1CE4E5B9" in text
    module.write_text(text.replace("0xBF58476D1CE4E5B9", "0xBF58476D1CE4E5B7"))
    assert places() != before
