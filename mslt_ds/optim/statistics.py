"""Trust ratios for metrics.jsonl: the minimum, median and maximum of each layer."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable

_LAYER = re.compile(r"(?:^|\.)(layers?|h|blocks?|albert_layer_groups)\.(\d+)\.")
_MAPPING = "embedding_hidden_mapping_in"  # of ALBERT: trains with the embeddings
_HEADS = ("cls", "predictions", "sop_classifier")  # of BERT and of ALBERT


def layer_of(name: str) -> str:
    """`bert.encoder.layer.3.output.dense.weight` -> `layer_3`; others go by their module's name.

    Outside the layers the first part that isn't the model's own name decides: `embeddings`,
    `pooler`, `cls`. The groups of an ALBERT, which share their parameters: `group_3`.
    """
    match = _LAYER.search(name)
    if match:
        kind = "group" if match.group(1) == "albert_layer_groups" else "layer"
        return f"{kind}_{int(match.group(2))}"
    if _MAPPING in name:
        return "embeddings"
    parts = name.split(".")
    return parts[1] if len(parts) > 2 and parts[0] not in _HEADS else parts[0]


def by_layer(ratios: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """(parameter name, trust ratio), ... to layer -> {"min", "median", "max"}, layers in order."""
    layers: dict[str, list[float]] = defaultdict(list)
    for name, ratio in ratios:
        layers[layer_of(name)].append(ratio)
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
    number = layer.removeprefix("layer_").removeprefix("group_")
    return (True, int(number), "") if number.isdigit() else (False, 0, layer)
