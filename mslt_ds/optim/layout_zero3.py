"""Where ZeRO 3 keeps the fp32 master of each parameter's shard, for `Lamb` used alone.

ZeRO 3 partitions each parameter, where ZeRO 1 and 2 partition the flat buffer: rank r holds elements
[r * partition, (r + 1) * partition) of every parameter, with padding in the last shards. A sub-group
(some parameters of one group) has one flat master; a shard's offset in it is the sum of the lengths of
the shards before it. Each shard is checked once against the parameter's own (`ds_tensor`). Written for
`deepspeed/runtime/zero/stage3.py` 0.19.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.optim.layout import GroupLayout, Slice

WRAPPER = "DeepSpeedZeroOptimizer_Stage3"


def bind_sub_groups(wrapper: Any, names: Mapping[str, Parameter]) -> tuple[GroupLayout, ...]:
    """The layout of every sub-group. Raises EnvironmentProblem if it isn't the one known here."""
    name_of = {id(parameter): name for name, parameter in names.items()}
    try:
        return tuple(
            _sub_group(list(parameters), master, wrapper.dp_process_group, name_of)
            for parameters, master in zip(
                wrapper.fp16_groups, wrapper.fp32_partitioned_groups_flat, strict=True
            )
        )
    except (AttributeError, KeyError, ValueError) as error:
        raise EnvironmentProblem(
            f"this version of deepspeed keeps ZeRO 3's masters elsewhere ({error!r}); "
            "install deepspeed 0.19.8"
        ) from error


def shard_slices(
    numels: Sequence[int], rank: int, world_size: int
) -> tuple[tuple[int, ...], tuple[Slice, ...]]:
    """The offsets of a sub-group's shards in its flat master, and their parts without padding."""
    offsets, slices, offset = [], [], 0
    for index, numel in enumerate(numels):
        partition = -(-numel // world_size)
        held = max(0, min(partition, numel - rank * partition))
        if held:
            slices.append(Slice(index, 0, offset, rank * partition, held))
        offsets.append(offset)
        offset += partition
    return tuple(offsets), tuple(slices)


def _sub_group(
    parameters: list[Any], master: Tensor, process_group: Any, name_of: Mapping[int, str]
) -> GroupLayout:
    rank, world_size = dist.get_rank(process_group), dist.get_world_size(process_group)
    names = tuple(name_of[id(parameter)] for parameter in parameters)
    partitions = [parameter.partition_numel() for parameter in parameters]
    for name, parameter, partition in zip(names, parameters, partitions, strict=True):
        if partition != -(-parameter.ds_numel // world_size):
            raise EnvironmentProblem(
                f"{name}: ZeRO 3 holds shards of {partition} of its {parameter.ds_numel} elements, "
                f"which {world_size} ranks don't make up; hierarchical partitioning is not supported"
            )
    if sum(partitions) != master.numel():
        raise EnvironmentProblem(
            f"a sub-group's shards have {sum(partitions)} elements, its master {master.numel()}; "
            "masters on NVMe and other partitionings are not supported"
        )
    offsets, slices = shard_slices([p.ds_numel for p in parameters], rank, world_size)
    for piece in slices:
        shard = parameters[piece.parameter].ds_tensor
        _verify(names[piece.parameter], shard, master, piece.master_start, piece.numel)
    return GroupLayout(names, tuple(parameters), (master,), offsets, slices, process_group)


def _verify(name: str, shard: Tensor, master: Tensor, offset: int, numel: int) -> None:
    if master.dtype != torch.float32:
        raise EnvironmentProblem(f"{name} has a master of type {master.dtype}; fp32 is needed")
    high = master.detach().narrow(0, offset, numel)
    low = shard.detach().view(-1).narrow(0, 0, numel)
    if not torch.equal(high.to(low.device, low.dtype), low):
        raise EnvironmentProblem(
            f"{name}: the fp32 master found for its shard doesn't hold its values (or holds NaN)"
        )
