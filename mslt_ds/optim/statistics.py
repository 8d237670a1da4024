"""Trust ratios for metrics.jsonl: the minimum, median and maximum of each layer."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def layer_of(name: str) -> str:
    """`encoder.layer.3.output.dense.weight` -> `layer_3`; outside the layers, the name's second
    part, or its first where there are only two. For models that no family describes."""
    if match := _LAYER.search(name):
        return f"layer_{int(match.group(1))}"
    parts = name.split(".")
    return parts[1] if len(parts) > 2 else parts[0]


def by_layer(
    ratios: Iterable[tuple[str, float]], part_of: Callable[[str], str] = layer_of
) -> dict[str, dict[str, float]]:
    """(parameter name, trust ratio), ... to part -> {"min", "median", "max"}, layers in order.

    part_of: parameter name -> the part of the model that it is counted with
    """
    layers: dict[str, list[float]] = defaultdict(list)
    for name, ratio in ratios:
        layers[part_of(name)].append(ratio)
    return {
        layer: {
            "min": min(values),
            "median": statistics.median(values),
            "max": max(values),
        }
        for layer, values in sorted(layers.items(), key=_in_order)
    }


def _in_order(item: tuple[str, list[float]]) -> tuple[bool, int, str]:
    layer, _ = item
    number = layer.rpartition("_")[2]
    return (True, int(number), "") if number.isdigit() else (False, 0, layer)
