"""Memory of this process, in bytes. Reads counters only, without synchronising with a GPU."""

from __future__ import annotations

import resource
import sys

import psutil
import torch

# getrusage counts kibibytes on Linux and bytes on macOS (getrusage(2) of each).
_MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def memory_metrics(device: torch.device) -> dict[str, int | None]:
    """`memory`: resident now; `memory_peak`: the largest resident size so far.

    `cuda_memory_peak`: the largest size of PyTorch's tensors on the GPU so far; None on a CPU.
    """
    on_gpu = device.type == "cuda"
    return {
        "memory": psutil.Process().memory_info().rss,
        "memory_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT_BYTES,
        "cuda_memory_peak": torch.cuda.max_memory_allocated(device) if on_gpu else None,
    }
