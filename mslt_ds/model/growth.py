"""Growth: the weights before a deeper stage from the weights after a shallower one.

These are pure functions on a state dict in Hugging Face names. A copied tensor is a new tensor,
bitwise equal to its source; every other tensor is passed on as it is. Tied aliases aren't among the
names, so the decoder stays tied. An operator is a list: for every layer of the deeper model the
layer that it comes from.

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
    copy_middle  0 1 2 0 1 2        Saunshi et al. 2024, "On the Inductive Bias of Stacking Towards
                 (6 -> 8:           Improving Reasoning" (arXiv 2409.19449), MIDAS: the middle one
                 0 1 2 3 2 3 4 5)   of the blocks of as many layers as are added, twice in its place
    random       0 1 2 - - -        new layers fresh

Where layers share their parameters (ALBERT), the same rules apply to groups of layers.

Where layers are of several kinds that repeat with a period (ModernBERT: every third attends
globally), a copy has to land on a place of its source's kind. `copy_top` rounds the number of layers
that it copies down to whole periods and, where there is no whole one, takes the nearest layer of the
kind; the other operators raise ValueError where the depths don't allow it. Layers may also differ in
their parameters: one that the source lacks begins fresh, one that the target lacks is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from mslt_ds.state import Weights


Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Name -> shape of every parameter of the grown model (`Family.parameter_shapes`)."""


def sources(
    depth_from: int, depth_to: int, operator: str, *, kinds: Sequence[str] = ()
) -> list[int | None]:
    """For each of `depth_to` layers, bottom first, its layer among `depth_from`; None: fresh.

    kinds: of the `depth_to` layers (`Family.kinds`); empty: they are all alike
    ValueError if a copy would land on a place of another kind.
    """
    if not 1 <= depth_from <= depth_to:
        raise ValueError(f"a model of {depth_from} layers can't grow to {depth_to}")
    kept = list(range(depth_from))
    added = depth_to - depth_from
    found: list[int | None]
    match operator:
        case "copy_top":
            # More layers than there are to copy: the whole stack, over and over.
            period = _period(kinds)
            copied = max(period, min(added, depth_from) // period * period)
            block = kept[-copied:]
            copies = [*kept, *(block[i % len(block)] for i in range(added))]
            found = list(copies)
            if kinds and depth_from < period:
                found = [_nearest(kinds, place, copy, kept) for place, copy in enumerate(copies)]
        case "copy_all":
            found = [i % depth_from for i in range(depth_to)]
        case "interpolate":
            found = [i * depth_from // depth_to for i in range(depth_to)]
        case "copy_middle":
            size = max(1, min(added, depth_from))
            start = (depth_from - size) // 2 // size * size
            block, end = kept[start : start + size], start + size
            copies = [block[i % size] for i in range(added)]
            found = [*kept[:end], *copies, *kept[end:]]
        case "random":
            found = [*kept, *[None] * added]
        case _:
            raise ValueError(f"unknown growth operator {operator!r}")
    for index, source in enumerate(found):
        if source is not None and kinds and kinds[source] != kinds[index]:
            raise ValueError(
                f"{operator} from {depth_from} to {depth_to} layers would put a copy of layer "
                f"{source} ({kinds[source]}) at place {index} ({kinds[index]}); grow from "
                f"{_period(kinds)} layers or more with copy_top, or choose random"
            )
    return found


def _period(kinds: Sequence[str]) -> int:
    """The least number for which layers i and i + period are of one kind."""
    return next((p for p in range(1, len(kinds)) if kinds[p:] == kinds[:-p]), max(1, len(kinds)))


def _nearest(kinds: Sequence[str], place: int, source: int, kept: list[int]) -> int:
    """Of the layers of the place's kind the one nearest to `source`; `source` if there is none."""
    alike = [layer for layer in kept if kinds[layer] == kinds[place]]
    return min(alike, key=lambda layer: abs(layer - source), default=source)


def grow(
    weights: Weights,
    depth_from: int,
    depth_to: int,
    operator: str,
    *,
    shapes: Shapes,
    fresh: Callable[[str, tuple[int, ...]], Tensor],
    block_prefix: str,
    kinds: Sequence[str] = (),
) -> Weights:
    """`weights` of `depth_from` layers as weights of `depth_to` layers.

    weights: Hugging Face names, without tied aliases; layer i's begin with `{block_prefix}{i}.`
    operator: copy_top, copy_all, interpolate, copy_middle or random
    shapes: of all parameters of the grown model
    fresh: (name, shape) -> a fresh parameter, asked for the new layers of `random`, and for what a
        copy has and its source lacks
    kinds: see `sources`
    """
    plan = sources(depth_from, depth_to, operator, kinds=kinds)
    layers, targets = _by_layer(weights, block_prefix), _by_layer(shapes, block_prefix)
    _check_layers(layers, targets, depth_from)
    grown = {name: tensor for name, tensor in weights.items() if not name.startswith(block_prefix)}
    for index, source in enumerate(plan):
        held = {} if source is None else layers[source]
        for suffix, shape in targets[index].items():
            name = f"{block_prefix}{index}.{suffix}"
            if suffix not in held:
                grown[name] = fresh(name, shape)
            elif source == index:
                grown[name] = held[suffix]
            else:
                grown[name] = held[suffix].detach().clone()
    return grown


def grow_optimizer_state(
    state: dict[str, Any],
    depth_from: int,
    depth_to: int,
    operator: str,
    *,
    copy: bool,
    shapes: Shapes,
    block_prefix: str,
    kinds: Sequence[str] = (),
) -> dict[str, Any]:
    """Optimizer state by parameter name, as it belongs to the grown model.

    A layer that keeps its place keeps its state, and so does what isn't a layer. A layer that is
    copied or moved starts without state or, with `copy`, with its source's (the same objects).
    """
    grown = {name: entry for name, entry in state.items() if not name.startswith(block_prefix)}
    layers = _by_layer(state, block_prefix)
    for index, source in enumerate(sources(depth_from, depth_to, operator, kinds=kinds)):
        if source is not None and (copy or source == index):
            for suffix, entry in layers.get(source, {}).items():
                name = f"{block_prefix}{index}.{suffix}"
                if name in shapes:
                    grown[name] = entry
    return grown


def _check_layers(
    layers: dict[int, dict[str, Any]], targets: dict[int, dict[str, Any]], depth: int
) -> None:
    """ValueError unless `layers` are the lower `depth` ones of the grown model, all complete."""
    for index in range(depth):
        if missing := targets[index].keys() - layers.get(index, {}).keys():
            raise ValueError(f"layer {index} lacks its parameter {min(missing)}")
    if beyond := [index for index in layers if index >= depth]:
        raise ValueError(
            f"{min(layers[beyond[0]])} of layer {beyond[0]} isn't a name of a model of {depth} layers"
        )


def _by_layer(items: Mapping[str, Any], prefix: str) -> dict[int, dict[str, Any]]:
    """Layer -> what belongs to it, by the rest of the names."""
    layers: dict[int, dict[str, Any]] = {}
    for name, item in items.items():
        if name.startswith(prefix):
            index, _, suffix = name[len(prefix) :].partition(".")
            layers.setdefault(int(index), {})[suffix] = item
    return layers
