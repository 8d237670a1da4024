"""Compilation of the hot loops by numba, and the random numbers they draw.

numba caches compiled code beside the module, or in its user-wide folder (`NUMBA_CACHE_DIR`) if that
can't be written. If neither can, each process compiles anew. numba detects a change of the module
that defines a function, but not of modules whose functions are inlined into it, so the cached name
contains a digest of all of them.

Random numbers are splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"). The state of a stream is one 64-bit word, so every document and every instance has a
stream of its own, seeded by all that it depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
_TO_UNIT = 2.0**-53


def _sources_digest() -> str:
    """A short digest of all modules of this package that define compiled functions."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_bytes()
        if b"\n@compiled\n" in source:
            digest.update(source)
    return digest.hexdigest()


_SOURCES = _sources_digest()


def compiled(function: Function) -> Function:
    """`numba.njit` that releases the interpreter lock and is cached on disk where possible."""
    options: dict[str, Any] = {"nogil": True}
    function.__qualname__ += f"_{_SOURCES}"
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # numba found no folder for its cache
        return cast(Function, numba.njit(**options)(function))


@compiled
def mix(value: np.uint64) -> np.uint64:
    """splitmix64's finalizer: a bijection on 64-bit words that looks random."""
    value = (value ^ (value >> _S30)) * _MIX_1
    value = (value ^ (value >> _S27)) * _MIX_2
    return value ^ (value >> _S31)


@compiled
def derive(key: np.uint64, number: int | np.integer) -> np.uint64:
    """The key of item `number` under `key`."""
    return mix(key ^ mix((np.uint64(number) + np.uint64(1)) * _GOLDEN))


@compiled
def uniform(state: np.ndarray) -> float:
    """The next number in [0, 1). Advances `state`, (1,) uint64."""
    state[0] += _GOLDEN
    return (mix(state[0]) >> _S11) * _TO_UNIT


@compiled
def below(state: np.ndarray, bound: int) -> np.int64:
    """The next integer in [0, bound)."""
    return np.int64(uniform(state) * bound)


def key_of(*parts: object) -> np.uint64:
    """A 64-bit key from values whose `repr` is exact: strings, integers and floats."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
