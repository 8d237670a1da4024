"""Timing in turns: a machine that slows down slows all candidates down alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Measurement = Callable[[], float]


def medians(measurements: Mapping[str, Measurement], repeats: int) -> dict[str, float]:
    """The median of each over `repeats` turns, after one turn to warm up."""
    found: dict[str, list[float]] = {name: [] for name in measurements}
    for turn in range(repeats + 1):
        for name, measure in measurements.items():
            value = measure()
            if turn:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of a call, with its work on a GPU."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
