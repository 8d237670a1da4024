"""Which places of a micro-batch run, so that nearly nothing is computed for padding.

The loader knows this from the instances, on the host: no device has to be asked how many tokens
there are. Counts are rounded up to a few sizes by keeping some of the padding, so that what is
compiled or captured for a shape has few of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mslt_ds.model.rows import PREDICTION_PLACES, TOKEN_PLACES


def places_to_run(
    fields: dict[str, Tensor], sizes: int, *, always: bool = False
) -> dict[str, Tensor]:
    """The fields TOKEN_PLACES and PREDICTION_PLACES of a micro-batch; without one whose grid is full.

    fields: of the micro-batch, by the names of InstanceArrays
    sizes: different counts that there may be: multiples of 1/sizes of the grid
    always: both fields, a full grid's too, so that what is compiled sees one kind of micro-batch
    """
    used = {
        TOKEN_PLACES: fields["attention_mask"],
        PREDICTION_PLACES: fields["masked_weights"] > 0,
    }
    pinned = fields["attention_mask"].is_pinned()
    found = {name: _places(grid.flatten(), sizes, always) for name, grid in used.items()}
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
