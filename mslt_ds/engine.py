"""One DeepSpeed engine for one stage: made from a state dict, released without a trace.

DeepSpeed sees the trainable suffix and nothing else, so partitioning, broadcast and all-reduce can't
touch a frozen parameter. Weights and optimizer state enter and leave by name, as whole fp32 tensors
(`state.TrainingState`).

What DeepSpeed does otherwise, each point with a test in tests/distributed:

* DeepSpeed makes its fp32 masters from the low-precision copies, so the fp32 numbers of record are
  written into the masters after `initialize`; otherwise each boundary would round the heads to bf16.
* `destroy()` leaves two hooks on the module, and these hold the engine with all it owns. Removing
  them, and a fresh module for each stage, keeps memory flat.
* In fp16 at ZeRO 0, DeepSpeed 0.19 divides the gradients by the loss scale but never multiplies
  the loss by it, and doubles the scale between the backward pass and that division. This module
  corrects both.
* DeepSpeed applies a gradient that isn't finite in fp32 at ZeRO 0, and in some other settings. Here no
  setting does.
* Heads that were carried over have made more optimizer steps than layers just grown. Adam's bias
  correction counts steps per parameter *group* under ZeRO, so each training age gets its own.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from mslt_ds.config.sections import OptimizerConfig
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.feed import SuffixInputs
from mslt_ds.model.staged import StageModel
from mslt_ds.optim import Lamb, LambOptions
from mslt_ds.optim.backends import build_lamb
from mslt_ds.optim.masters import NamedMasters
from mslt_ds.recipe import deepspeed_json
from mslt_ds.state import LossScaleField, TrainingState, step_counts
from mslt_ds.timing import BACKWARD, SUFFIX, timed


@dataclass(frozen=True)
class EngineSettings:
    """What an engine needs of a recipe."""

    optimizer: OptimizerConfig
    deepspeed: dict[str, Any]
    precision: str
    gradient_clipping: float
    micro_batch_size: int
    gradient_accumulation_steps: int


def parameter_groups(
    parameters: dict[str, torch.nn.Parameter], ages: dict[str, int], weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups, one for each (training age, decayed or not), youngest first.

    ages: name -> optimizer steps that the parameter's state has seen; absent means 0.
    One-dimensional parameters (biases and weights of norms) are not decayed (Devlin et al. 2018,
    appendix A.2).
    """
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters.items():
        groups[ages.get(name, 0), parameter.ndim < 2].append(parameter)
    return [
        {"params": members, "weight_decay": 0.0 if not_decayed else weight_decay}
        for (_, not_decayed), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def _build_optimizer(
    config: OptimizerConfig, groups: list[dict[str, Any]], zero_stage: int
) -> torch.optim.Optimizer:
    if config.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
        )
    return build_lamb(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        options=LambOptions(**config.lamb.model_dump(exclude={"backend"})),
        backend=config.lamb.backend,
        zero_stage=zero_stage,
    )


class StageEngine:
    """The engine of one stage. After `close()` nothing of it is left.

    model: fresh for this stage; its weights equal those of `state`
    state: weights and moments to go on with. Those of the suffix go into the engine; parameters
        without moments begin without. Rank 0 keeps the rest, which is frozen, for `state()`
    """

    def __init__(
        self,
        model: StageModel,
        settings: EngineSettings,
        state: TrainingState,
        meter: TrafficMeter,
    ) -> None:
        import deepspeed

        self.model = model
        self.settings = settings
        self._meter = meter
        parameters = dict(model.suffix.named_parameters())
        self._frozen = TrainingState(state.step, passed_over=state.passed_over)
        if dist.get_rank() == 0:
            self._frozen = state.without(parameters.keys())
        groups = parameter_groups(
            parameters, step_counts(state.optimizer_state), settings.optimizer.weight_decay
        )
        zero_stage = deepspeed_json.zero_stage(settings.deepspeed)
        self._is_plain = zero_stage == 0 and settings.precision == "fp32"
        optimizer = _build_optimizer(settings.optimizer, groups, zero_stage)
        engine, *_ = deepspeed.initialize(
            model=model.suffix,
            optimizer=optimizer,
            config=deepspeed_json.stage_config(
                settings.deepspeed,
                micro_batch_size=settings.micro_batch_size,
                gradient_accumulation_steps=settings.gradient_accumulation_steps,
                precision=settings.precision,
                # In plain fp32 the norm that clipping needs is also the check of the gradient.
                gradient_clipping=0.0 if self._is_plain else settings.gradient_clipping,
            ),
        )
        # Any: its type is a union of all that DeepSpeed might wrap.
        self._engine: Any = engine
        self._scales_loss_itself = settings.precision == "fp16" and not engine.zero_optimization()
        clips = settings.gradient_clipping > 0.0
        if zero_stage and (settings.precision == "bf16" or not clips):
            # ZeRO applies such a gradient in bf16, and in fp32 where nothing is clipped.
            self._engine.optimizer.check_grad_overflow = True
        self._scale_window = 0
        if self._scales_loss_itself:
            # Doubling is done by `_grow_loss_scale`, after the step and not inside it.
            self._scale_window = self._scaler.scale_window or sys.maxsize
            self._scaler.scale_window = sys.maxsize
        self._scale_of_step = 1.0
        if isinstance(optimizer, Lamb):
            optimizer.bind(engine)
        self._masters = NamedMasters.bind(engine, parameters)
        self._masters.write_weights({name: state.weights[name] for name in parameters})
        self._masters.write_optimizer_state(
            {n: state.optimizer_state[n] for n in parameters if n in state.optimizer_state}
        )
        for name, value in state.loss_scale.items():
            setattr(self._scaler, name, value)
        if hasattr(self._scaler, "raise_error_at_min_scale"):
            self._scaler.raise_error_at_min_scale = False  # `loss_scale_is_exhausted` reports it
        self._grad_norm: Tensor | None = None  # in plain fp32

    def accumulate(self, inputs: SuffixInputs, denominators: tuple[int, ...]) -> Tensor:
        """Add the gradient of a micro-batch's part of the step's loss. The last one reduces it.

        denominators: what each summed loss is divided by, on the global batch: the parts of all
            micro-batches of all ranks add up to the loss of the step

        Where the part isn't finite, so is none of its gradient: the reduction tells every rank,
        and `step` skips.

        -> (losses,) this micro-batch's parts, detached
        """
        with timed(SUFFIX):
            sums: tuple[Tensor, ...] = self._engine(*inputs)
        parts = [total / number for total, number in zip(sums, denominators, strict=True)]
        loss = sum(parts[1:], start=parts[0])
        # DeepSpeed averages over ranks; the factor undoes that.
        factor = self._engine.dp_world_size * (
            self.loss_scale() if self._scales_loss_itself else 1.0
        )
        weight = factor + 0.0 * loss.detach()  # NaN where the loss is infinite or NaN
        with self._meter.backward(), timed(BACKWARD):
            self._engine.backward(loss * weight, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch, and does nothing else
        return torch.stack(parts).detach()

    def warm_up(self, inputs: SuffixInputs) -> None:
        """Compile the suffix's passes for such inputs, if it's compiled. Leaves no gradient behind."""
        suffix = self.model.suffix
        if suffix.compiled is None:
            return
        try:
            total = torch.stack(suffix(*inputs)).sum()
            torch.autograd.grad(total, list(suffix.parameters()), allow_unused=True)
        except TorchDynamoException as error:  # the backward pass is compiled when it first runs
            suffix.compiled.give_up(error)

    def step(self, learning_rate: float) -> bool | Tensor:
        """Update the weights, after the `accumulate` of the step's last micro-batch.

        -> whether the step was skipped, on all ranks alike, because the loss or the gradient wasn't
        finite: weights, moments and step counts stay as they were. A () bool tensor where the
        device decides and the host need not wait.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._scale_of_step = self.loss_scale()
        if self._is_plain:
            return self._plain_step()
        self._engine.step()
        skipped = bool(self._engine.optimizer.overflow)
        if self._scales_loss_itself and not skipped:
            self._grow_loss_scale()
        return skipped

    def _plain_step(self) -> bool | Tensor:
        """The step at ZeRO 0 in fp32, where DeepSpeed checks nothing."""
        from deepspeed.runtime.utils import clip_grad_norm_

        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        if self.settings.gradient_clipping > 0.0:
            norm = clip_grad_norm_(parameters, self.settings.gradient_clipping)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self._grad_norm = norm
        skipped = norm.isfinite().logical_not().reshape(())
        optimizer = self._engine.basic_optimizer
        if norm.device.type == "cuda" and isinstance(optimizer, torch.optim.AdamW):
            # Its fused kernel reads the flag; a scaler of gradients would set the same attribute.
            optimizer.found_inf = skipped.float()  # pyright: ignore[reportAttributeAccessIssue]
            self._engine.step()
            return skipped
        if skipped:
            for parameter in parameters:
                parameter.grad = None
        self._engine.step()
        return bool(skipped)

    @torch.no_grad()
    def evaluate(self, inputs: SuffixInputs) -> Tensor:
        """-> (losses,) the micro-batch's summed losses, without dropout."""
        self.model.suffix.eval()
        try:
            return torch.stack(self.model.suffix(*inputs))
        finally:
            self.model.suffix.train()

    def _grow_loss_scale(self) -> None:
        """Double the scale after `scale_window` steps without an overflow, as DeepSpeed would."""
        scaler = self._scaler
        steady_steps = scaler.cur_iter - 1 - scaler.last_overflow_iter - 1
        if scaler.dynamic_loss_scale and steady_steps > 0 and not steady_steps % self._scale_window:
            scaler.cur_scale *= scaler.scale_factor

    def grad_norm(self) -> float | None:
        """Norm of the last step's global gradient before clipping (synchronises the device)."""
        norm = (
            self._grad_norm if self._grad_norm is not None else self._engine.get_global_grad_norm()
        )
        if norm is None:
            return None
        # Where DeepSpeed doesn't know that the loss was scaled, its norm is still scaled.
        return float(norm) / (self._scale_of_step if self._scales_loss_itself else 1.0)

    def metrics(self) -> dict[str, Any]:
        """Gradient norm, loss scale and trust ratios of the last step (synchronises the device)."""
        optimizer = self._engine.basic_optimizer
        ratios = {}
        if isinstance(optimizer, Lamb):
            ratios = optimizer.trust_ratios(self.model.family.part_of)
        return ratios | {"grad_norm": self.grad_norm(), "loss_scale": self.loss_scale()}

    @property
    def _scaler(self) -> Any:
        """DeepSpeed keeps the scale in one of two places, depending on the wrapper."""
        wrapper = self._engine.optimizer
        return getattr(wrapper, "loss_scaler", None) or getattr(wrapper, "loss_scale_config", None)

    @property
    def scales_dynamically(self) -> bool:
        """Whether the loss scale looks for its value, as in fp16 unless the DeepSpeed JSON gives one."""
        scaler = self._scaler
        return bool(getattr(scaler, "dynamic", getattr(scaler, "dynamic_loss_scale", False)))

    def loss_scale(self) -> float:
        """The factor on the loss; 1 outside fp16."""
        return float(getattr(self._scaler, "cur_scale", 1.0))

    def loss_scale_is_exhausted(self) -> bool:
        """Whether the dynamic loss scale of fp16 can't shrink any further."""
        scaler = self._scaler
        least = getattr(scaler, "min_scale", getattr(scaler, "min_loss_scale", None))
        return least is not None and self.loss_scale() <= least

    @property
    def frozen(self) -> TrainingState:
        """What of `state()` doesn't train: the same object as long as the engine lives."""
        return self._frozen

    def state(self, step: int) -> TrainingState:
        """The training state after `step` steps: whole on rank 0, empty elsewhere. A collective."""
        weights = self._masters.read_weights(to_rank=0)
        optimizer_state = self._masters.read_optimizer_state(to_rank=0)
        return TrainingState(
            step,
            self._frozen.weights | weights,
            self._frozen.optimizer_state | optimizer_state,
            self._loss_scale_state(),
            self._frozen.passed_over,
        )

    def _loss_scale_state(self) -> dict[LossScaleField, int | float]:
        """Everything that the dynamic loss scale goes on from; empty outside fp16."""
        if self.settings.precision != "fp16":
            return {}
        scaler = self._scaler
        return {
            name: getattr(scaler, name)
            for name in get_args(LossScaleField)
            if hasattr(scaler, name)
        }

    def close(self) -> None:
        """Release engine, optimizer, masters and moments. The object is unusable afterwards."""
        engine = self._engine
        for name in ("module_forward_pre_hook", "module_forward_post_hook"):
            hook = getattr(engine, name, None)
            if hook is not None:
                hook.remove()
        engine.destroy()
        del self._engine, self._masters, self._frozen, self.model
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _return_freed_pages()


def _return_freed_pages() -> None:
    """glibc keeps the pages of an engine that is gone; the next one's sizes fit them badly."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
