"""Writes the figures of a benchmark, with command, commit, hardware and versions, as a dated JSON to `results/`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mslt_ds.distributed.world import device_name

RESULTS = Path(__file__).parent / "results"


def write(
    name: str,
    command: Sequence[str],
    figures: Mapping[str, Any],
    *,
    device: torch.device | None = None,
    packages: Sequence[str] = ("torch",),
    folder: Path = RESULTS,
) -> Path:
    """Write `folder/NAME_DATE.json` and print its path.

    command: the module and its arguments
    device: the device that was measured (default: the processor)
    packages: packages whose versions are recorded
    """
    now = datetime.now(UTC)
    content = {
        "date": now.isoformat(timespec="seconds"),
        "command": ["python", "-m", *command],
        "commit": _commit(),
        "device": device_name(device or torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        **figures,
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}_{now:%Y%m%d_%H%M%S}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")
    return path


def _commit() -> str | None:
    """The commit of this checkout, with a plus sign if files differ from it; None without Git."""
    git = ["git", "-C", str(RESULTS.parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout else "")
