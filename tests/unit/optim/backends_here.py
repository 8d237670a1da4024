"""The backends of `Lamb` whose passes can run in this process, on CPU tensors."""

from __future__ import annotations

import os

from mslt_ds.optim.passes import BackendName

# test_lamb_triton.py starts such a process. The interpreter is slow: a tenth of the work is enough.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS: list[BackendName] = ["torch", "numba"]
if INTERPRETED:
    BACKENDS.append("triton")


def fewer(count: int) -> int:
    """Steps or examples of a test."""
    return max(3, count // 10) if INTERPRETED else count
