"""Where DeepSpeed keeps the fp32 master of each parameter: offsets from addresses, checked once.

Under ZeRO 1 and 2 every model parameter is a view into its group's flat buffer, so the difference of
the two data pointers is the parameter's offset, whatever order DeepSpeed chose (round-robin
gradients, alignment padding). DeepSpeed's own map (`_hp_mapping`) is wrong with round-robin
gradients, so it isn't used. Rank r of a group's process group owns elements
[r * partition, (r + 1) * partition) of the flat buffer, and its fp32 master is one flat tensor. Each
slice is checked when it is bound: the master, cast to the model's precision, equals the parameter.

Written for `deepspeed/runtime/` 0.19 (`zero/stage_1_and_2.py`, `bf16_optimizer.py`,
`fp16/unfused_optimizer.py`, `fp16/fused_optimizer.py`). A version that stores its masters otherwise
raises EnvironmentProblem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from mslt_ds.errors import EnvironmentProblem


@dataclass(frozen=True)
class Slice:
    """A contiguous part of one parameter inside one of this rank's masters (all in elements)."""

    parameter: int
    """Index into `GroupLayout.names`."""
    master: int
    """Index into `GroupLayout.masters`."""
    master_start: int
    parameter_start: int
    numel: int


@dataclass(frozen=True, eq=False)
class GroupLayout:
    """One parameter group: its parameters and where this rank keeps their masters."""

    names: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    masters: tuple[Tensor, ...]
    """fp32, the same objects as in the optimizer's `params`: one flat tensor or one each."""
    offsets: tuple[int, ...] | None
    """Of each parameter in the group's whole flat buffer; None if each has its own master."""
    slices: tuple[Slice, ...]
    process_group: Any = None
    """The ranks that share the flat buffer; None if every rank holds all of it."""

    @property
    def sharded(self) -> bool:
        return self.process_group is not None


def partition_slices(
    offsets: Sequence[int], numels: Sequence[int], partition_start: int, partition_numel: int
) -> tuple[Slice, ...]:
    """The parts of the parameters that lie in [partition_start, partition_start + partition_numel).

    `offsets` and `numels` give each parameter's place in the flat buffer.
    """
    partition_end = partition_start + partition_numel
    slices = []
    for index, (offset, numel) in enumerate(zip(offsets, numels, strict=True)):
        start = max(offset, partition_start)
        end = min(offset + numel, partition_end)
        if start < end:
            slices.append(Slice(index, 0, start - partition_start, start - offset, end - start))
    return tuple(slices)


def bind_groups(engine: Any, names: Mapping[str, Parameter]) -> tuple[GroupLayout, ...]:
    """The layout of every parameter group of a DeepSpeed engine, each slice checked.

    `names` must hold exactly the parameters that the engine's optimizer trains. Raises
    EnvironmentProblem if a parameter's master isn't found or doesn't hold its values.
    """
    name_of = {id(parameter): name for name, parameter in names.items()}
    layouts = []
    for parameters, masters, flat, process_group in raw_groups(engine):
        unknown = [tuple(p.shape) for p in parameters if id(p) not in name_of]
        if unknown:
            raise EnvironmentProblem(
                f"the engine's optimizer trains parameters of shapes {unknown[:5]} that have no "
                "name here; pass every trained parameter of the engine's module"
            )
        layouts.append(_layout(parameters, masters, flat, process_group, name_of))
    held = {name for layout in layouts for name in layout.names}
    missing = sorted(set(names) - held)
    if missing:
        raise EnvironmentProblem(
            f"the engine's optimizer doesn't hold {', '.join(missing[:5])}"
            f"{' and others' if len(missing) > 5 else ''}; pass only parameters that it trains"
        )
    return tuple(layouts)


def inner_optimizer(engine: Any) -> Optimizer:
    """The optimizer inside DeepSpeed's wrapper, or the engine's own if nothing wraps it."""
    wrapper = engine.optimizer
    return wrapper if isinstance(wrapper, Optimizer) else wrapper.optimizer


class RawGroup(NamedTuple):
    """One parameter group as DeepSpeed keeps it."""

    parameters: list[Parameter]
    """The model's own, in the model's precision."""
    masters: list[Tensor]
    """fp32: one flat tensor, or one for each parameter."""
    flat: Tensor | None
    """The whole group in the model's precision; None if each parameter has its own master."""
    process_group: Any
    """The ranks that share the flat buffer; None if each rank holds all of it."""


# The attributes of each wrapper: parameters, masters, flat buffers, process groups.
_WRAPPERS: dict[str, tuple[str, str, str | None, str | None]] = {
    "FP16_UnfusedOptimizer": ("fp16_groups", "fp32_groups", None, None),
    "FP16_Optimizer": ("fp16_groups", "fp32_groups_flat", "fp16_groups_flat", None),
    "DeepSpeedZeroOptimizer": (
        "bit16_groups",
        "single_partition_of_fp32_groups",
        "bit16_groups_flat",
        "real_dp_process_group",
    ),
    "BF16_Optimizer": (
        "bf16_groups",
        "fp32_groups_flat_partition",
        "bf16_groups_flat",
        "real_dp_process_group",
    ),
}


def raw_groups(engine: Any) -> list[RawGroup]:
    """The engine's parameter groups, as its optimizer wrapper keeps them."""
    wrapper = engine.optimizer
    if isinstance(wrapper, Optimizer):  # ZeRO 0 in fp32: the parameters are the masters
        groups = wrapper.param_groups
        return [RawGroup(list(g["params"]), list(g["params"]), None, None) for g in groups]
    kind = type(wrapper).__name__
    if kind not in _WRAPPERS:
        raise EnvironmentProblem(
            f"deepspeed wrapped the optimizer in {kind}, whose masters can't be found by "
            "parameter; ZeRO 0, 1 and 2 in fp32, bf16 and fp16 are supported"
        )
    try:
        raw = _wrapped_groups(wrapper, *_WRAPPERS[kind])
        held = [list(group["params"]) for group in wrapper.optimizer.param_groups]
    except (AttributeError, IndexError) as error:
        raise EnvironmentProblem(_unknown_version(kind, str(error))) from error
    if [[id(t) for t in tensors] for tensors in held] != [[id(t) for t in g.masters] for g in raw]:
        raise EnvironmentProblem(_unknown_version(kind, "the optimizer holds other tensors"))
    return raw


def _wrapped_groups(
    wrapper: Any, low: str, high: str, flat: str | None, process_group: str | None
) -> list[RawGroup]:
    groups = []
    for index, parameters in enumerate(getattr(wrapper, low)):
        master = getattr(wrapper, high)[index]
        groups.append(
            RawGroup(
                list(parameters),
                [master] if isinstance(master, Tensor) else list(master),
                getattr(wrapper, flat)[index] if flat else None,
                getattr(wrapper, process_group)[index] if process_group else None,
            )
        )
    return groups


def _layout(
    parameters: list[Parameter],
    masters: list[Tensor],
    flat: Tensor | None,
    process_group: Any,
    name_of: Mapping[int, str],
) -> GroupLayout:
    """One group's slices by address, each verified against the parameter's values."""
    names = tuple(name_of[id(parameter)] for parameter in parameters)
    offsets = None
    if flat is None:
        slices = tuple(Slice(i, i, 0, 0, p.numel()) for i, p in enumerate(parameters))
    else:
        offsets = tuple(_offset(p, flat, n) for n, p in zip(names, parameters, strict=True))
        rank = dist.get_rank(process_group) if process_group is not None else 0
        world_size = dist.get_world_size(process_group) if process_group is not None else 1
        partition = masters[0].numel()
        if partition * world_size != flat.numel():
            raise EnvironmentProblem(
                f"{world_size} partitions of {partition} elements don't make up the flat buffer "
                f"of {flat.numel()}; this version of deepspeed partitions otherwise"
            )
        numels = [parameter.numel() for parameter in parameters]
        slices = partition_slices(offsets, numels, rank * partition, partition)
    layout = GroupLayout(names, tuple(parameters), tuple(masters), offsets, slices, process_group)
    for piece in slices:
        _verify(layout, piece)
    return layout


def _offset(parameter: Parameter, flat: Tensor, name: str) -> int:
    """Elements between the start of the flat buffer and the parameter that views into it."""
    distance = parameter.data_ptr() - flat.data_ptr()
    offset, rest = divmod(distance, flat.element_size())
    inside = rest == 0 and 0 <= offset <= flat.numel() - parameter.numel()
    if not inside or not parameter.is_contiguous() or parameter.dtype != flat.dtype:
        raise EnvironmentProblem(f"{name} is no view into its group's flat buffer")
    return offset


def _verify(layout: GroupLayout, piece: Slice) -> None:
    name, parameter = layout.names[piece.parameter], layout.parameters[piece.parameter]
    master = layout.masters[piece.master]
    if master.dtype != torch.float32:
        raise EnvironmentProblem(f"{name} has a master of type {master.dtype}; fp32 is needed")
    if not master.is_contiguous():
        raise EnvironmentProblem(
            f"{name} is not contiguous in memory; make it so with .contiguous()"
        )
    high = master.detach().view(-1).narrow(0, piece.master_start, piece.numel)
    low = parameter.detach().reshape(-1).narrow(0, piece.parameter_start, piece.numel)
    if not torch.equal(high.to(low.device, low.dtype), low):
        raise EnvironmentProblem(
            f"{name}: the fp32 master found for it doesn't hold its values (or holds NaN); "
            "nothing was changed"
        )


def _unknown_version(kind: str, detail: str) -> str:
    import deepspeed

    return (
        f"deepspeed {deepspeed.__version__} keeps {kind}'s masters elsewhere ({detail}); "
        "install deepspeed 0.19.8"
    )
