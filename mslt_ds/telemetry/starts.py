"""starts.jsonl: which process worked on a run when, where, with which versions and data.

A run is often continued by another job on other machines, so each process start adds a line. Nothing is
computed from these lines; a report shows them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mslt_ds import __version__

if TYPE_CHECKING:
    import torch

    from mslt_ds.distributed.world import World

STARTS_FILE = "starts.jsonl"
_PACKAGES = ("torch", "deepspeed", "transformers", "numpy")


def add_start(run_dir: Path, world: World, device: torch.device, data: dict[str, str]) -> None:
    """Add this process's line.

    data: the recipe's key of each token store -> the store's digest
    """
    import torch

    from mslt_ds.distributed.world import device_name

    line: dict[str, Any] = {
        "time": time.time(),
        "host": socket.gethostname(),
        "device": device_name(device),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "world_size": world.world_size,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "versions": {"mslt-ds": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "data": data,
    }
    with (run_dir / STARTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
