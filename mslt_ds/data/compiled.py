"""Compilation of the hot loops by numba, and the random numbers they draw.

Notable: numba keeps compiled code beside the module, or in its user-wide folder
(`NUMBA_CACHE_DIR`) where that can't be written; where neither can, each process compiles anew
instead of failing. numba notices a change of the module a function stands in, but not of those
whose functions are compiled into it, so the name it's kept under holds a digest of them all.
Random numbers are splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"): a stream is one 64-bit word, so every document and instance has one of its own, seeded
by what it's a function of.
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
    """A few characters that stand for the text of every module here that has compiled functions."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_bytes()
        if b"\n@compiled\n" in source:
            digest.update(source)
    return digest.hexdigest()


_SOURCES = _sources_digest()


def compiled(function: Function) -> Function:
    """`numba.njit` without the interpreter lock, kept on disk where a folder can be written."""
    options: dict[str, Any] = {"nogil": True}
    function.__qualname__ += f"_{_SOURCES}"
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # numba found no folder to keep it in
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
    """The next number of [0, 1) from `state`, (1,) uint64, which moves on."""
    state[0] += _GOLDEN
    return (mix(state[0]) >> _S11) * _TO_UNIT


@compiled
def below(state: np.ndarray, bound: int) -> np.int64:
    """The next whole number of [0, bound)."""
    return np.int64(uniform(state) * bound)


def key_of(*parts: object) -> np.uint64:
    """A 64-bit key from values with a faithful `repr`: strings, whole and floating numbers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
