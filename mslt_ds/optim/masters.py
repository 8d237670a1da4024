"""Weights and optimizer state of a DeepSpeed engine, read and written by parameter name.

What crosses a stage boundary or goes into a checkpoint is named and whole, so it doesn't depend on the
number of ranks, the ZeRO stage or the parameter groups. DeepSpeed makes its fp32 masters from the
low-precision parameters when it initialises. Weights are therefore written into the masters first, and
then, cast down, into the model's parameters. `layout.py` finds the masters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from mslt_ds.errors import CheckpointError
from mslt_ds.optim.layout import GroupLayout, bind_groups, inner_optimizer, raw_groups
from mslt_ds.state import OptimizerState

GATHER_ELEMENTS = 1 << 26
"""Elements of one all-gather when masters are read: bounds the buffer to 256 MiB of fp32."""


class NamedMasters:
    """Weights and optimizer state of a DeepSpeed engine, read and written by parameter name.

    Reads and writes are collective: every rank calls them. Each gives the whole, and gets it unless
    `to_rank` names another.
    Works for optimizers that keep one state per tensor (torch's AdamW, `mslt_ds.optim.Lamb`),
    at ZeRO 0, 1 and 2 in fp32, bf16 and fp16.
    """

    def __init__(self, engine: Any, groups: tuple[GroupLayout, ...]) -> None:
        self._wrapper = engine.optimizer
        self._optimizer = inner_optimizer(engine)
        self.groups = groups

    @classmethod
    def bind(cls, engine: Any, names: Mapping[str, Parameter]) -> NamedMasters:
        """Find every parameter's master in a freshly initialised (or running) engine.

        The fp16/bf16 wrappers of ZeRO 0 call `optimizer.step()` on zero gradients in their
        constructor, which decays the masters and counts a step that never was; before the first
        real step this is undone here.
        """
        if engine.global_steps == 0:
            _undo_constructor_step(engine)
        return cls(engine, bind_groups(engine, names))

    @torch.no_grad()
    def read_weights(self, to_rank: int | None = None) -> dict[str, Tensor]:
        """Name -> the whole fp32 master, on the CPU, with the parameter's shape.

        to_rank: the only rank that gets them; the others get nothing. None: every rank
        """
        weights = {}
        for group in self.groups:
            weights.update(_read(group, list(group.masters), to_rank))
        return weights

    @torch.no_grad()
    def write_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put fp32 weights into the masters and, cast down, into the model's own parameters.

        `weights` may hold more names than the engine does; each of the engine's must be there.
        """
        for group in self.groups:
            for name, parameter in zip(group.names, group.parameters, strict=True):
                _require(weights, name, parameter, "weights")
            _write(group, group.masters, [weights[name] for name in group.names])
            for name, parameter in zip(group.names, group.parameters, strict=True):
                parameter.data.copy_(weights[name])

    @torch.no_grad()
    def read_optimizer_state(self, to_rank: int | None = None) -> OptimizerState:
        """Name -> whole moments (fp32, CPU, the parameter's shape) and `step` (int).

        Parameters that the optimizer keeps no state for yet are absent.

        to_rank: the only rank that gets it; the others get nothing. None: every rank
        """
        states: OptimizerState = {}
        for group, settings in zip(self.groups, self._optimizer.param_groups, strict=True):
            live = [bool(self._optimizer.state.get(master)) for master in group.masters]
            for key in self._moment_names(group):
                tensors = [
                    self._optimizer.state[master][key] if alive else None
                    for master, alive in zip(group.masters, live, strict=True)
                ]
                for name, tensor in _read(group, tensors, to_rank).items():
                    states.setdefault(name, {})[key] = tensor
            for index, name in _master_of_each(group):
                if live[index]:
                    own = self._optimizer.state[group.masters[index]]
                    counts = settings if _counts_by_group(self._optimizer) else own
                    states.setdefault(name, {})["step"] = int(counts["step"])
        return states if _receives(to_rank) else {}

    @torch.no_grad()
    def write_optimizer_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Give the parameters in `state` these moments and step counts, all others a fresh start.

        `state` may hold more names than the engine does. Parameters that share a flat master
        share its step count, so they must come with the same one (or all without state).
        """
        for group, settings in zip(self.groups, self._optimizer.param_groups, strict=True):
            _require_state(group, state)
            if _counts_by_group(self._optimizer):
                settings["step"] = _common_step(group.names, state)
            for index, master in enumerate(group.masters):
                names = [name for i, name in _master_of_each(group) if i == index]
                step = _common_step(names, state)
                if step == 0:
                    self._optimizer.state.pop(master, None)
                    continue
                self._create_state(master, settings, state[names[0]], step)
            for key in sorted({key for name in group.names for key in state.get(name, ())}):
                if key != "step":
                    self._write_moment(group, key, state)
        if hasattr(self._wrapper, "_hp_optimizer_states_linked"):
            self._wrapper._hp_optimizer_states_linked = False  # it links again after a step

    def _moment_names(self, group: GroupLayout) -> list[str]:
        """The state entries that have one number for each element."""
        keys = set()
        for master in group.masters:
            for key, value in (self._optimizer.state.get(master) or {}).items():
                if key != "step" and isinstance(value, Tensor) and value.shape == master.shape:
                    keys.add(key)
        return sorted(keys)

    def _create_state(
        self, master: Tensor, settings: dict[str, Any], like: Mapping[str, Any], step: int
    ) -> None:
        """Zero moments and this step count for `master`, in the form its optimizer keeps them."""
        own = self._optimizer.state[master]
        for key in like:
            if key != "step" and key not in own:
                own[key] = torch.zeros_like(master, requires_grad=False)
        if _counts_by_group(self._optimizer):
            return
        if isinstance(own.get("step"), Tensor):
            own["step"].fill_(step)
        elif isinstance(self._optimizer, torch.optim.Adam):  # AdamW is one too
            # torch hosts `step` on the CPU unless the kernel reads it there.
            on_device = settings.get("capturable") or settings.get("fused")
            device = master.device if on_device else torch.device("cpu")
            own["step"] = torch.tensor(float(step), dtype=torch.float32, device=device)
        else:
            own["step"] = step

    def _write_moment(
        self, group: GroupLayout, key: str, state: Mapping[str, Mapping[str, Any]]
    ) -> None:
        targets = [
            self._optimizer.state[m].get(key) if self._optimizer.state.get(m) else None
            for m in group.masters
        ]
        values = [state[name].get(key) if name in state else None for name in group.names]
        _write(group, targets, values)


def _receives(to_rank: int | None) -> bool:
    return to_rank is None or dist.get_rank() == to_rank


def _read(
    group: GroupLayout, tensors: Sequence[Tensor | None], to_rank: int | None
) -> dict[str, Tensor]:
    """Whole tensors by name from tensors laid out like the group's masters (None: left out)."""
    if not (group.sharded or _receives(to_rank)):
        return {}
    if group.offsets is None:
        return {
            name: tensor.detach().to("cpu", copy=True).view(parameter.shape)
            for name, parameter, tensor in zip(group.names, group.parameters, tensors, strict=True)
            if tensor is not None
        }
    flat = tensors[0]
    if flat is None:
        return {}
    whole = _gather(flat.detach(), group, to_rank) if group.sharded else flat.detach().to("cpu")
    if whole is None:
        return {}
    return {
        name: whole.narrow(0, offset, parameter.numel()).view(parameter.shape).clone()
        for name, parameter, offset in zip(
            group.names, group.parameters, group.offsets, strict=True
        )
    }


def _gather(partition: Tensor, group: GroupLayout, to_rank: int | None) -> Tensor | None:
    """(partition,) of each rank -> (world_size * partition,) on the CPU of those that receive it."""
    world_size = dist.get_world_size(group.process_group)
    device = group.parameters[0].device  # where the process group communicates
    receives = _receives(to_rank)
    whole = torch.empty(world_size if receives else 0, partition.numel(), dtype=partition.dtype)
    piece = max(1, GATHER_ELEMENTS // world_size)
    for start in range(0, partition.numel(), piece):
        mine = partition[start : start + piece].to(device).contiguous()
        theirs = torch.empty(len(whole), mine.numel(), dtype=mine.dtype, device=device)
        if to_rank is None:
            dist.all_gather(list(theirs.unbind()), mine, group=group.process_group)
        else:
            parts = list(theirs.unbind()) if receives else None
            dist.gather(mine, parts, dst=to_rank, group=group.process_group)
        whole[:, start : start + piece] = theirs.to("cpu")
    return whole.view(-1) if receives else None


def _write(
    group: GroupLayout, targets: Sequence[Tensor | None], values: Sequence[Tensor | None]
) -> None:
    """Copy this rank's slices of whole tensors into tensors laid out like the masters."""
    for piece in group.slices:
        target, value = targets[piece.master], values[piece.parameter]
        if target is None or value is None:
            continue
        target.detach().view(-1).narrow(0, piece.master_start, piece.numel).copy_(
            value.reshape(-1).narrow(0, piece.parameter_start, piece.numel)
        )


def _master_of_each(group: GroupLayout) -> list[tuple[int, str]]:
    """(index of the master, parameter name), for every parameter on every rank."""
    if group.offsets is None:
        return list(enumerate(group.names))
    return [(0, name) for name in group.names]


def _counts_by_group(optimizer: torch.optim.Optimizer) -> bool:
    """apex's fused optimizers count steps in the group's settings, not beside the moments."""
    return type(optimizer).__module__.startswith("apex.")


def _common_step(names: Sequence[str], state: Mapping[str, Mapping[str, Any]]) -> int:
    """The step count that parameters of one master share; 0 where none of them has state."""
    steps = {name: int(state[name]["step"]) if name in state else 0 for name in names}
    if len(set(steps.values())) > 1:
        low, high = min(steps, key=steps.__getitem__), max(steps, key=steps.__getitem__)
        raise CheckpointError(
            f"optimizer state: {low} has made {steps[low]} steps and {high} {steps[high]}, but "
            "here they share one count; use one parameter group for each"
        )
    return next(iter(steps.values()), 0)


def _require_state(group: GroupLayout, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Every entry for this group has a step count, moments of its shape, the same ones for all."""
    given = [name for name in group.names if name in state]
    for name, parameter in zip(group.names, group.parameters, strict=True):
        if name not in state:
            continue
        if "step" not in state[name] or set(state[name]) != set(state[given[0]]):
            raise CheckpointError(
                f"optimizer state: {name} has the entries {sorted(state[name])}, "
                f"{given[0]} has {sorted(state[given[0]])}; both need the same, with step"
            )
        for key, value in state[name].items():
            if key != "step":
                _require({name: value}, name, parameter, f"optimizer state {key}")


def _require(values: Mapping[str, Tensor], name: str, parameter: Parameter, what: str) -> None:
    if name not in values:
        raise CheckpointError(f"{what}: {name} is missing")
    if values[name].shape != parameter.shape:
        raise CheckpointError(
            f"{what}: {name} has shape {tuple(values[name].shape)}, "
            f"the model has {tuple(parameter.shape)}"
        )


@torch.no_grad()
def _undo_constructor_step(engine: Any) -> None:
    """Take back the zero-gradient step of the fp16/bf16 wrappers' constructors.

    Its moments are all zero, which those of a real step are not.
    """
    wrapper = engine.optimizer
    if type(wrapper).__name__ not in ("FP16_UnfusedOptimizer", "FP16_Optimizer"):
        return
    state = wrapper.optimizer.state
    moments = [
        value
        for own in state.values()
        for key, value in own.items()
        if key != "step" and isinstance(value, Tensor)
    ]
    if not moments or any(moment.any() for moment in moments):
        return
    state.clear()
    if _counts_by_group(wrapper.optimizer):
        for settings in wrapper.optimizer.param_groups:
            settings.pop("step", None)
    for low, high, flat, _ in raw_groups(engine):
        sources = low if flat is None else [flat]
        for master, source in zip(high, sources, strict=True):
            master.data.copy_(source)
