"""Which places of a micro-batch run, so that nearly nothing is computed for padding.

The loader knows this from the instances, on the host: no device has to be asked how many tokens
there are. Counts are rounded up to a few sizes by keeping some of the padding, so that what is
compiled or captured for a shape has few of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def places_to_run(
    fields: dict[str, Tensor], grids: Mapping[str, str], sizes: int, *, always: bool = False
) -> dict[str, Tensor]:
    """The fields that `grids` names, of a micro-batch; without one whose grid is full.

    fields: of the micro-batch
    grids: see `Objective.grids`
    sizes: different counts that there may be: multiples of 1/sizes of the grid
    always: a full grid's too, so that what is compiled sees one kind of micro-batch
    """
    found = {
        name: _places(fields[grid].flatten() > 0, sizes, always) for name, grid in grids.items()
    }
    pinned = fields["attention_mask"].is_pinned()
    return {
        name: places.pin_memory() if pinned else places
        for name, places in found.items()
        if places is not None
    }


def _places(used: Tensor, sizes: int, always: bool) -> Tensor | None:
    """(count,) int64: the places of True in order, then as many others as make the count a size."""
    whole, count = len(used), int(used.sum())
    units = max(1, -(-count * sizes // whole))  # at least one, so that no shape is empty
    size = -(-units * whole // sizes)
    if size == whole and not always:
        return None
    places = [used.nonzero(), used.logical_not().nonzero()[: size - count]]
    return torch.cat(places).flatten()
