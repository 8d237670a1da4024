"""What rank 0 has and the other ranks need: values, tensors, and the errors of getting them.

Rank 0 reads checkpoints and models, and holds the training state. A collective here hands over what
a stage needs, so that only one rank reads the disk and a folder that other nodes see late does no
harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mslt_ds.errors import MsltError
from mslt_ds.state import OptimizerState, TrainingState, moments, optimizer_state, step_counts

Value = TypeVar("Value")


def on_rank_0(function: Callable[[], Value]) -> Value | None:
    """function() on rank 0, None on the others. A collective.

    A user's error (`MsltError`) on rank 0 is raised on every rank: none is left waiting.
    """
    result, error = None, None
    if dist.get_rank() == 0:
        try:
            result = function()
        except MsltError as raised:
            error = raised
    error = broadcast_value(error)
    if error is not None:
        raise error
    return result


def broadcast_value(value: Value) -> Value:
    """Rank 0's `value` (of any kind that can be pickled) on every rank. A collective."""
    holder: list[Any] = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def is_finite(state: TrainingState) -> bool:
    """Whether rank 0's `state` is. A collective."""
    return broadcast_value(state.is_finite())


def broadcast_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Rank 0's CPU tensors by name, on the CPU of every rank. A collective.

    device: where the process group communicates
    """
    if dist.get_world_size() == 1:
        return dict(tensors)
    is_source = dist.get_rank() == 0
    described = broadcast_value([(n, tuple(t.shape), t.dtype) for n, t in tensors.items()])
    received: dict[str, Tensor] = {}
    for name, shape, dtype in described:
        if is_source:
            moved = tensors[name].contiguous().to(device)
        else:
            moved = torch.empty(shape, dtype=dtype, device=device)
        dist.broadcast(moved, src=0)
        received[name] = tensors[name] if is_source else moved.cpu()
    return received


def broadcast_moments(state: OptimizerState, device: torch.device) -> OptimizerState:
    """Rank 0's optimizer state on every rank. A collective."""
    return optimizer_state(
        broadcast_tensors(moments(state), device), broadcast_value(step_counts(state))
    )


def share_training(
    state: TrainingState, trained: frozenset[str], device: torch.device
) -> TrainingState:
    """Moments and loss scale of what trains, on every rank, beside the weights it has. A collective.

    state: on rank 0 of the whole run, elsewhere with the weights alone
    trained: names of the parameters that the stage trains

    Rank 0 keeps the moments of all other parameters too.
    """
    needed = {name: entry for name, entry in state.optimizer_state.items() if name in trained}
    return TrainingState(
        state.step,
        state.weights,
        state.optimizer_state | broadcast_moments(needed, device),
        broadcast_value(state.loss_scale),
        state.passed_over,
    )
