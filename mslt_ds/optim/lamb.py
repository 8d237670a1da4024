"""LAMB that is exact under ZeRO 0 to 3: one trust ratio for each parameter, wherever it lies.

ZeRO gives an optimizer one flat tensor for each group and rank, from which an ordinary LAMB silently
computes one trust ratio for all parameters in it. After `bind(engine)`, `Lamb` knows where each
parameter lies: each rank sums the squares of its slices, one all-reduce per group adds them up
(2 x parameters elements), and each parameter is updated with its own ratio. The formulas are those of
`lamb_reference.py` (You et al. 2019); `passes.py` chooses the code that runs over memory. A step does
not synchronise with a GPU.
"""

# torch's multi-tensor operations have an underscore, but no other name.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.optim import layout_zero3
from mslt_ds.optim.lamb_reference import (
    LambOptions,
    adapts,
    bias_corrections,
    gradient_scale,
    trust_ratios,
)
from mslt_ds.optim.layout import GroupLayout, bind_groups, inner_optimizer, raw_groups
from mslt_ds.optim.passes import BackendName, Passes, choose, make
from mslt_ds.optim.pieces import Coefficients, GroupTensors, Pieces, squared_norms
from mslt_ds.optim.statistics import by_layer, layer_of


@dataclass(frozen=True, eq=False)
class _Bound:
    """Where DeepSpeed keeps the masters of one group."""

    layout: GroupLayout
    pieces: Pieces | None
    """This rank's slices of a flat master; None if each parameter has a master of its own."""


class Lamb(torch.optim.Optimizer):
    """LAMB for fp32 parameters, or for the fp32 masters that DeepSpeed keeps.

    Args:
        params: parameters or groups. Give biases and LayerNorm a group with `weight_decay: 0.0`;
            with `options.adapt == "decayed"` (the default) such a group has a trust ratio of 1.
        lr, betas, eps, weight_decay: as in Adam; each group may have its own.
        options: the choices in which implementations of LAMB differ.
        backend: "auto" uses triton on a GPU and numba on a CPU if they are installed, else torch.

    Without DeepSpeed and at ZeRO 0, each parameter has its own tensor and nothing else is needed.
    At ZeRO 1, 2 and 3 call `bind(engine)` after `deepspeed.initialize`; a step without it raises.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        options: LambOptions | None = None,
        backend: BackendName = "auto",
    ) -> None:
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas {betas}: each must be in [0, 1)")
        if lr < 0.0 or eps < 0.0 or weight_decay < 0.0:
            raise ValueError(f"lr {lr}, eps {eps}, weight_decay {weight_decay}: none below 0")
        self.options = options or LambOptions()
        self.backend_name = backend
        self._backends: dict[str, Passes] = {}
        self._given: list[list[tuple[weakref.ref[Tensor], torch.Size]]] = []
        self._bound: dict[int, _Bound] = {}
        self._wrapper: weakref.ref[Any] | None = None
        self._last_ratios: dict[int, tuple[tuple[str, ...], Tensor, bool]] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        members = self.param_groups[-1]["params"]
        if members:  # deepspeed drops empty groups
            self._given.append([(weakref.ref(p), p.shape) for p in members])

    def bind(self, engine: Any) -> None:
        """Read from a DeepSpeed engine where each parameter lies. Needed at ZeRO 1, 2 and 3.

        Raises EnvironmentProblem, without having changed anything, if the layout isn't known.
        """
        if inner_optimizer(engine) is not self:
            raise EnvironmentProblem("Lamb.bind: this engine was made with another optimizer")
        wrapper, named = engine.optimizer, dict(engine.module.named_parameters())
        if type(wrapper).__name__ == layout_zero3.WRAPPER:
            layouts = layout_zero3.bind_sub_groups(wrapper, named)
        else:
            held = {id(p) for group in raw_groups(engine) for p in group.parameters}
            layouts = bind_groups(engine, {n: p for n, p in named.items() if id(p) in held})
        self._bound = {
            id(layout.masters[0]): _Bound(
                layout, None if layout.offsets is None else Pieces.of_layout(layout)
            )
            for layout in layouts
        }
        self._last_ratios.clear()
        # A weak reference: the wrapper owns this optimizer, and a cycle would delay its release.
        self._wrapper = weakref.ref(engine.optimizer)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._bound and not self._steppable_unbound():
            return loss
        scale = self._gradient_scale()
        for group in self.param_groups:
            if not group["params"]:
                continue
            bound = self._bound.get(id(group["params"][0]))
            if bound is not None and bound.pieces is not None:
                self._step_flat(group, bound.layout, bound.pieces, scale)
            else:
                self._step_whole(group, bound, scale)
        return loss

    def _step_whole(
        self, group: dict[str, Any], bound: _Bound | None, scale: Tensor | None
    ) -> None:
        """A group in which each parameter has a tensor of its own."""
        active = [index for index, p in enumerate(group["params"]) if p.grad is not None]
        if not active:
            return
        masters = [group["params"][index] for index in active]
        steps = self._advance(masters)
        names = tuple(bound.layout.names[index] if bound else "parameters" for index in active)
        pieces = Pieces.whole([master.numel() for master in masters])
        self._update(group, masters, pieces, steps, names, None, scale)

    def _step_flat(
        self,
        group: dict[str, Any],
        layout: GroupLayout,
        pieces: Pieces,
        scale: Tensor | None,
    ) -> None:
        """A group whose parameters share one flat master, of which this rank has a partition."""
        (master,) = group["params"]
        if master.grad is None:
            return
        steps = self._advance([master]).expand(pieces.num_parameters)
        self._update(group, [master], pieces, steps, layout.names, layout, scale)

    def _update(
        self,
        group: dict[str, Any],
        masters: list[Tensor],
        pieces: Pieces,
        steps: Tensor,
        names: tuple[str, ...],
        layout: GroupLayout | None,
        scale: Tensor | None,
    ) -> None:
        """The first pass, the sum of squares over all ranks, and the second pass."""
        device = masters[0].device
        tensors = self._tensors(masters)
        decay = group["weight_decay"]
        first, second = bias_corrections(steps, group["betas"], self.options)
        dtype = masters[0].dtype
        coefficients = Coefficients(
            first=first.to(device, dtype).contiguous(),
            second=second.to(device, dtype).contiguous(),
            gradient_scale=None if scale is None else scale.to(device),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            update_decay=decay if self.options.decay == "update" else 0.0,
            gradient_decay=decay if self.options.decay == "gradient" else 0.0,
        )
        backend = self._backend(tensors)
        squares = backend.moments(pieces, tensors, coefficients)
        if layout is not None and layout.sharded:
            squares = _sum_over_ranks(squares, layout)
        adapt = adapts(decay, self.options)
        ratios = trust_ratios(squares[:, 0], squares[:, 1], self.options, adapt=adapt)
        rates = (group["lr"] * ratios).to(dtype).contiguous()
        backend.apply(pieces, tensors, coefficients, rates)
        self._last_ratios[id(group["params"][0])] = (names, ratios, adapt)

    def _advance(self, masters: list[Tensor]) -> Tensor:
        """Count the step; (masters,) counts, this step included, on the masters' device.

        The count is kept with the moments: an int on the CPU, a tensor on a GPU. Copying a number
        from or to the GPU would synchronise, and can't be captured in a CUDA graph.
        """
        device = masters[0].device
        for master in masters:
            if master.device != device:
                raise EnvironmentProblem(
                    f"Lamb got parameters on {device} and on {master.device} in one group; "
                    "give those of each device a group of their own"
                )
            if not master.is_floating_point() or master.dtype in (torch.float16, torch.bfloat16):
                raise EnvironmentProblem(
                    f"Lamb got a parameter of type {master.dtype}; it updates fp32 tensors. "
                    "Let DeepSpeed's bf16 or fp16 mode keep the masters"
                )
        for master in masters:
            state = self.state[master]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(master)
                state["exp_avg_sq"] = torch.zeros_like(master)
                state["step"] = 0
            if device.type == "cpu":
                state["step"] = int(state["step"]) + 1
            elif not (isinstance(state["step"], Tensor) and state["step"].device == device):
                # New, or loaded from a checkpoint that was mapped to the CPU.
                state["step"] = torch.tensor(float(state["step"]), device=device)
        steps = [self.state[master]["step"] for master in masters]
        if device.type == "cpu":
            return torch.tensor(steps, dtype=torch.float64)
        torch._foreach_add_(steps, 1.0)
        return torch.stack(steps).double()

    def _tensors(self, masters: list[Tensor]) -> GroupTensors:
        gradients = []
        for master in masters:
            gradient = master.grad
            if gradient is None or gradient.is_sparse:
                raise EnvironmentProblem("Lamb needs dense gradients; this one is sparse")
            gradient = gradient.to(master.dtype)
            gradients.append(gradient.contiguous() if master.is_contiguous() else gradient)
        return GroupTensors(
            tuple(masters),
            tuple(gradients),
            tuple(self.state[master]["exp_avg"] for master in masters),
            tuple(self.state[master]["exp_avg_sq"] for master in masters),
        )

    def _backend(self, tensors: GroupTensors) -> Passes:
        """The passes for these tensors, made at their first use."""
        held = (tensors.weights, tensors.gradients, tensors.exp_avgs, tensors.exp_avg_sqs)
        name = choose(self.backend_name, [tensor for stream in held for tensor in stream])
        if name not in self._backends:
            self._backends[name] = make(name)
        return self._backends[name]

    def _gradient_scale(self) -> Tensor | None:
        """() factor on all gradients of this step, or None for 1."""
        if self.options.gradient_normalization == "none":
            return None
        return gradient_scale(self._total_norm(), self.options)

    def _total_norm(self) -> Tensor:
        """() global norm of the gradients that the optimizer was given, float64."""
        if len(self._bound) > sum(bool(group["params"]) for group in self.param_groups):
            # ZeRO steps one group or sub-group at a time, and has computed the global norm before.
            return self._norm_from_wrapper()
        total = None
        for group in self.param_groups:
            if not group["params"]:
                continue
            bound = self._bound.get(id(group["params"][0]))
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if bound is not None and bound.pieces is not None and gradients:
                gradients = bound.pieces.views(gradients)
            squares = squared_norms(gradients).sum()
            if bound is not None and bound.layout.sharded:
                squares = _sum_over_ranks(squares, bound.layout)
            total = squares if total is None else total + squares
        if total is None:
            raise EnvironmentProblem("Lamb has no parameter groups")
        return total.sqrt()

    def _norm_from_wrapper(self) -> Tensor:
        wrapper = self._wrapper() if self._wrapper is not None else None
        norm = getattr(wrapper, "_global_grad_norm", None)
        if wrapper is None or norm is None:
            raise EnvironmentProblem(
                "Lamb's gradient_normalization needs the global gradient norm, which this "
                "deepspeed doesn't compute; set zero_optimization.compute_grad_norm to true"
            )
        norm = torch.as_tensor(norm).double()
        if wrapper.clip_grad > 0.0:  # the norm is of the gradients before clipping
            norm = norm / torch.clamp((norm + 1e-6) / wrapper.clip_grad, min=1.0)
        return norm

    def _steppable_unbound(self) -> bool:
        """Whether a step without `bind` is correct; False for the step in DeepSpeed's constructors.

        Raises EnvironmentProblem if the tensors aren't single parameters.
        """
        groups = [group["params"] for group in self.param_groups if group["params"]]
        given = all(
            len(now) == len(then) and all(ref() is p for p, (ref, _) in zip(now, then, strict=True))
            for now, then in zip(groups, self._given, strict=False)
        )
        if given and len(groups) == len(self._given):
            return True
        if not self.state and not any(
            p.grad is not None and p.grad.any() for members in groups for p in members
        ):
            return False
        shapes = [[p.shape for p in members] for members in groups]
        if shapes == [[shape for _, shape in members] for members in self._given]:
            return True  # a master for each parameter: ZeRO 0 in bf16 or fp16
        raise EnvironmentProblem(
            "Lamb got flat tensors that hold many parameters (ZeRO 1 to 3), where it can't tell "
            "one parameter from the next; call optimizer.bind(engine) after deepspeed.initialize"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "_given"):  # copied or unpickled: nothing is bound there
            raise EnvironmentProblem(
                "Lamb can't be copied or pickled; make a new one and use load_state_dict"
            )

    def trust_ratios(
        self, part_of: Callable[[str], str] = layer_of
    ) -> dict[str, dict[str, dict[str, float]]]:
        """The last step's trust ratios by layer, for metrics (synchronises a GPU once).

        {"trust_ratio": {"layer_0": {"min", "median", "max"}, ...}}, without the parameters whose
        ratio is always 1. Layers are known after `bind` only. Empty before the first step.

        part_of: parameter name -> the layer, or other part of the model, that it is counted with
        """
        adapting = [(names, ratios) for names, ratios, adapt in self._last_ratios.values() if adapt]
        if not adapting:
            return {}
        values = torch.cat([ratios.reshape(-1) for _, ratios in adapting]).tolist()
        names = [name for group, _ in adapting for name in group]
        return {"trust_ratio": by_layer(zip(names, values, strict=True), part_of)}


def _sum_over_ranks(values: Tensor, layout: GroupLayout) -> Tensor:
    """All-reduce on the parameters' device: masters may be offloaded to a CPU, NCCL needs a GPU."""
    there = values.to(layout.parameters[0].device)
    dist.all_reduce(there, group=layout.process_group)
    return there.to(values.device)
