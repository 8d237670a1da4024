"""The training loop: batches in, steps done, metrics out. It knows no method and no plan.

The loss of a step is defined on the *global* batch: each loss of the objective, summed over all of it
and divided by the number of its terms. Each micro-batch contributes its part, and dropout is seeded by (seed, step, index of the micro-batch
in the global batch). Ranks, accumulation and a resume therefore change nothing but rounding.

The loop waits for the device every `log_every_steps` steps and not in between. (DeepSpeed's own
check of a gradient norm or an overflow may read one number a step.)
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mslt_ds.data.loader import GlobalBatch, MicroBatch
from mslt_ds.distributed.signals import StopRequest
from mslt_ds.distributed.traffic import Traffic
from mslt_ds.engine import StageEngine
from mslt_ds.errors import DivergenceError
from mslt_ds.telemetry.memory import memory_metrics


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs of a recipe."""

    seed: int
    device: torch.device
    log_every_steps: int
    checkpoint_every_steps: int
    losses: tuple[str, ...]  # the names of the objective's losses


@dataclass(frozen=True)
class StageTrace:
    """What a stage's steps looked like: seconds of each timed window's mean step."""

    next_step: int
    stopped: bool
    step_seconds: list[float]


def train_steps(
    engine: StageEngine,
    batches: Iterable[GlobalBatch],
    *,
    first_step: int,
    settings: LoopSettings,
    learning_rate: Callable[[int], float],
    stop: StopRequest,
    traffic: Traffic,
    log: Callable[[int, dict[str, Any]], None],
    checkpoint: Callable[[int], None],
) -> StageTrace:
    """One optimizer step for each of `batches`; ends early where `stop` says so.

    log(step, metrics): called every `log_every_steps` steps with that step's values
    checkpoint(steps_done): called every `checkpoint_every_steps` steps and before an early end
    """
    window = _Window(settings.device, traffic)
    step_seconds: list[float] = []
    next_step = first_step
    for batch in window.waiting_for(batches):
        step, next_step = next_step, next_step + 1
        stop.ask()
        logged = next_step % settings.log_every_steps == 0
        rate = learning_rate(step)
        means = _step(engine, batch, step, rate, settings, want_grad_norm=logged)
        window.add(batch.num_instances)
        if logged:
            metrics = window.metrics(_mean_losses(means, settings.losses))
            _check_finite(metrics["loss"], step)
            step_seconds.append(metrics["step_seconds"])
            log(step, _with_engine_values(metrics, engine, rate))
        stopped = stop.answer()
        if stopped or next_step % settings.checkpoint_every_steps == 0:
            checkpoint(next_step)
            window.restart()
        if stopped:
            return StageTrace(next_step, True, step_seconds)
    return StageTrace(next_step, False, step_seconds)


def _step(
    engine: StageEngine,
    batch: GlobalBatch,
    step: int,
    learning_rate: float,
    settings: LoopSettings,
    *,
    want_grad_norm: bool,
) -> Tensor:
    """This rank's part of each of the global batch's mean losses, (losses,) on the device."""
    parts: list[list[Tensor]] = []
    for micro_batch in batch.micro_batches:
        torch.manual_seed(dropout_seed(settings.seed, step, micro_batch.index))
        sums = engine.losses(to_device(micro_batch, settings.device))
        means = [total / number for total, number in zip(sums, batch.denominators, strict=True)]
        engine.backward(sum(means[1:], start=means[0]))
        engine.step(learning_rate, want_grad_norm=want_grad_norm)
        parts.append([mean.detach() for mean in means])
    return torch.stack([torch.stack(column).sum() for column in zip(*parts, strict=True)])


def _mean_losses(parts: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """The global batch's losses, from each rank's parts, (losses,). A collective; synchronises."""
    parts = parts.double()
    dist.all_reduce(parts)
    losses: list[float] = parts.tolist()
    named = {f"{name}_loss": loss for name, loss in zip(names, losses, strict=True)}
    return {"loss": sum(losses, start=0.0)} | named


def _check_finite(loss: float, step: int) -> None:
    """DivergenceError, on every rank alike, for a loss that is no number."""
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the loss of step {step} is {loss}; the checkpoints of earlier steps are kept. "
            "Lower optimizer.learning_rate or lengthen schedule.warmup_steps (and in fp16 try "
            "bf16 or fp32), under another name or from an earlier checkpoint"
        )


def _with_engine_values(
    metrics: dict[str, Any], engine: StageEngine, learning_rate: float
) -> dict[str, Any]:
    return (
        metrics
        | engine.trust_ratios()
        | {
            "learning_rate": learning_rate,
            "grad_norm": engine.grad_norm(),
            "loss_scale": engine.loss_scale(),
        }
    )


class _Window:
    """Time and traffic since the last log line."""

    def __init__(self, device: torch.device, traffic: Traffic) -> None:
        self._device, self._traffic = device, traffic
        self.restart()

    def restart(self) -> None:
        """Leave out what was not training, such as writing a checkpoint."""
        self._traffic.take()
        self._steps = self._instances = 0
        self._waited = 0.0
        self._began = time.perf_counter()

    def waiting_for(self, batches: Iterable[GlobalBatch]) -> Iterator[GlobalBatch]:
        """The batches; how long each was waited for is counted."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                return
            self._waited += time.perf_counter() - began
            yield batch

    def add(self, instances: int) -> None:
        self._steps += 1
        self._instances += instances

    def metrics(self, losses: dict[str, float]) -> dict[str, Any]:
        """Rates of the window, which starts anew. `losses` were read from the device: it's idle."""
        seconds = time.perf_counter() - self._began
        steps, instances, waited = self._steps, self._instances, self._waited
        traffic = self._traffic.take()
        self.restart()
        return (
            losses
            | memory_metrics(self._device)
            | {
                "step_seconds": seconds / steps,
                "sequences_per_second": instances / seconds,
                "data_wait_seconds": waited / steps,
                "elements_reduced": traffic.gradients_reduced // steps,
                "elements_gathered": traffic.parameters_gathered // steps,
            }
        )


def evaluate_losses(
    engine: StageEngine,
    batches: Iterator[GlobalBatch],
    device: torch.device,
    names: tuple[str, ...],
) -> dict[str, float]:
    """Held-out mean losses over all of `batches`, dropout off. A collective.

    names: of the objective's losses
    """
    totals = torch.zeros(len(names), dtype=torch.float64)
    denominators = [0] * len(names)
    for batch in batches:
        denominators = [a + b for a, b in zip(denominators, batch.denominators, strict=True)]
        for micro_batch in batch.micro_batches:
            sums = engine.evaluate(to_device(micro_batch, device))
            totals += torch.tensor([float(total) for total in sums])
    totals = totals.to(device)
    dist.all_reduce(totals)
    return {
        f"eval_{name}_loss": total / number
        for name, total, number in zip(names, totals.tolist(), denominators, strict=True)
    }


def to_device(batch: MicroBatch, device: torch.device) -> dict[str, Tensor]:
    """The micro-batch's tensors by name; from pinned memory the copy is asynchronous."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.fields.items()}


def dropout_seed(seed: int, step: int, micro_batch_index: int) -> int:
    """64 bits that stand for (seed, step, index of the micro-batch in the global batch)."""
    key = f"{seed}/{step}/{micro_batch_index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True)
