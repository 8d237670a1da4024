"""Growth: the weights before a deeper stage from the weights after a shallower one.

Notable: a pure function on a state dict in Hugging Face names. A copied tensor is a new tensor,
bitwise equal to its source; every other one is passed on untouched, the source too. Tied aliases
aren't among the names, so the MLM decoder stays tied. Each operator is a list, for every layer of
the deeper model the layer that it comes from, and that list is all there is to say about it:

    operator     3 -> 6 layers      source
    copy_top     0 1 2 0 1 2        Yang et al. 2020, "Progressively Stacking 2.0", section 3: new
                 (4 -> 6:           layers go on top, copies of as many top layers; the layers
                 0 1 2 3 2 3)       below keep their places, so they may be frozen
    copy_all     0 1 2 0 1 2        Gong et al. 2019, "Efficient Training of BERT by Progressively
                 (4 -> 6:           Stacking", section 3: the whole stack, put on top of itself
                 0 1 2 3 0 1)
    interpolate  0 0 1 1 2 2        the other order: each layer beside its copy, as in Chang et al.
                                    2018, "Multi-level Residual Networks from Dynamical Systems
                                    View"
    random       0 1 2 - - -        new layers fresh

Where layers share their parameters (ALBERT), what is said of layers holds of groups of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mslt_ds.state import Weights


def sources(depth_from: int, depth_to: int, operator: str) -> list[int | None]:
    """For each of `depth_to` layers, bottom first, its layer among `depth_from`; None: fresh."""
    if not 1 <= depth_from <= depth_to:
        raise ValueError(f"a model of {depth_from} layers can't grow to {depth_to}")
    kept = list(range(depth_from))
    added = depth_to - depth_from
    match operator:
        case "copy_top":
            # More layers than there are to copy: the whole stack, over and over.
            block = kept[-min(added, depth_from) :]
            return [*kept, *(block[i % len(block)] for i in range(added))]
        case "copy_all":
            return [i % depth_from for i in range(depth_to)]
        case "interpolate":
            return [i * depth_from // depth_to for i in range(depth_to)]
        case "random":
            return [*kept, *[None] * added]
        case _:
            raise ValueError(f"unknown growth operator {operator!r}")


def grow(
    weights: Weights,
    depth_from: int,
    depth_to: int,
    operator: str,
    *,
    fresh: Callable[[str, tuple[int, ...]], Tensor],
    layer_prefix: str,
) -> Weights:
    """`weights` of `depth_from` layers as weights of `depth_to` layers.

    weights: Hugging Face names, without tied aliases; layer i's begin with `{layer_prefix}{i}.`
    operator: copy_top, copy_all, interpolate or random
    fresh: (name, shape) -> a fresh parameter, asked for new layers of `random` alone
    """
    layers = _layers(weights, depth_from, layer_prefix)
    grown = {name: tensor for name, tensor in weights.items() if not name.startswith(layer_prefix)}
    for index, source in enumerate(sources(depth_from, depth_to, operator)):
        for suffix, tensor in layers[source or 0].items():
            name = f"{layer_prefix}{index}.{suffix}"
            if source is None:
                grown[name] = fresh(name, tuple(tensor.shape))
            elif source == index:
                grown[name] = tensor
            else:
                grown[name] = tensor.detach().clone()
    return grown


def grow_optimizer_state(
    state: dict[str, Any],
    depth_from: int,
    depth_to: int,
    operator: str,
    *,
    copy: bool,
    layer_prefix: str,
) -> dict[str, Any]:
    """Optimizer state by parameter name, as it belongs to the grown model.

    A layer that keeps its place keeps its state, and so does what isn't a layer. A layer that is
    copied or moved starts without state or, with `copy`, with its source's (the same objects).
    """
    grown = {name: entry for name, entry in state.items() if not name.startswith(layer_prefix)}
    layers: dict[int, dict[str, Any]] = {}
    for name, entry in state.items():
        if name.startswith(layer_prefix):
            index, _, suffix = name[len(layer_prefix) :].partition(".")
            layers.setdefault(int(index), {})[suffix] = entry
    for index, source in enumerate(sources(depth_from, depth_to, operator)):
        if source is not None and (copy or source == index):
            for suffix, entry in layers.get(source, {}).items():
                grown[f"{layer_prefix}{index}.{suffix}"] = entry
    return grown


def _layers(weights: Weights, depth: int, prefix: str) -> list[Weights]:
    """Each layer's tensors by the rest of their names."""
    layers: list[Weights] = [{} for _ in range(depth)]
    for name, tensor in weights.items():
        if name.startswith(prefix):
            index, _, suffix = name[len(prefix) :].partition(".")
            if int(index) >= depth:
                raise ValueError(f"{name} isn't a name of a model of {depth} layers")
            layers[int(index)][suffix] = tensor
    for index, layer in enumerate(layers):
        if layer.keys() != layers[0].keys() or not layer:
            raise ValueError(f"layer {index} lacks parameters that layer 0 has")
    return layers
