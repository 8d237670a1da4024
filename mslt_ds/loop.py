"""The training loop: micro-batches in, steps done, metrics out. It knows no method and no plan.

The loss of a step is defined on the *global* batch: each summed loss of the objective, divided by its
number in the global batch. Each micro-batch contributes its part, and dropout is seeded by the run's
seed, the step and the micro-batch's index in the global batch. The number of ranks, accumulation and
a resume therefore change nothing but rounding.

The loop synchronises with the device every `log_every_steps` steps and not in between. (DeepSpeed's
own check of a gradient norm or an overflow may read one number a step.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mslt_ds.data.loader import GlobalBatch
from mslt_ds.distributed.agreement import StopRequest
from mslt_ds.distributed.traffic import Traffic
from mslt_ds.distributed.watchdog import Watchdog
from mslt_ds.engine import StageEngine
from mslt_ds.errors import DivergenceError
from mslt_ds.feed import Feed
from mslt_ds.guard import GoBack, StepGuard, StepResult
from mslt_ds.model.objective import Objective
from mslt_ds.telemetry.memory import memory_metrics
from mslt_ds.timing import DATA, OPTIMIZER, timed


@dataclass(frozen=True)
class Hooks:
    """What the loop calls while it runs."""

    learning_rate: Callable[[int], float]
    """(step) -> its rate."""
    log: Callable[[int, dict[str, Any]], None]
    """(step, metrics), every `log_every_steps` steps."""
    skipped: Callable[[StepResult], None]
    """For each step that was skipped."""
    step_done: Callable[[int, int, int], None]
    """(step, instances of all ranks, real tokens of this rank), after each step."""
    checkpoint: Callable[[int, bool], bool | None]
    """(steps done, whether the run stops) -> whether all numbers are finite, else nothing is written;
    None where it was left out. Where `checkpoint_due` says so and before an early end, but not after the
    last step."""
    checkpoint_due: Callable[[int], bool]
    """(steps done) -> whether a checkpoint is due."""
    log_every_steps: int


@dataclass(frozen=True)
class StageTrace:
    """How far the steps of a stage came, and the mean seconds of a step in each timed window."""

    next_step: int
    step_seconds: list[float]
    unsaved: tuple[int, int] | None = None  # instances since the last checkpoint
    stopped: bool = False
    go_back: GoBack | None = None

    def not_finite(self) -> GoBack:
        """Why the run goes back where the state after the last step isn't finite."""
        assert self.unsaved is not None
        return GoBack(self.next_step - 1, self.unsaved, "weights or moments aren't finite")


def train_steps(
    engine: StageEngine,
    feed: Feed,
    batches: Iterable[GlobalBatch],
    objective: Objective,
    *,
    steps: range,
    hooks: Hooks,
    guard: StepGuard,
    stop: StopRequest,
    traffic: Traffic,
    watchdog: Watchdog,
    device: torch.device,
) -> StageTrace:
    """One optimizer step for each of `batches`. Ends early where `stop` or `guard` says so.

    steps: numbers of the steps; the state after the last one is the caller's to save

    DivergenceError where fp16's loss scale can't shrink any further.
    """
    window = _Window(device, traffic)
    step_seconds: list[float] = []
    next_step = steps.start
    parts: list[Tensor] = []  # of the step, (losses,) each
    pending: list[_Pending] = []
    unsaved: tuple[int, int] | None = None  # instances since the last checkpoint
    for fed in feed.training(window.waiting_for(batches), steps.start):
        watchdog.computing(fed.step, first=fed.step == steps.start)
        if fed.begins_step:
            stop.ask()
        torch.manual_seed(fed.dropout_seed)
        parts.append(engine.accumulate(fed.inputs, fed.batch.denominators))
        if not fed.ends_step:
            continue
        step, next_step = fed.step, fed.step + 1
        instances = fed.batch.instances
        unsaved = (instances[0] if unsaved is None else unsaved[0], instances[1])
        loss_parts = torch.stack(parts).sum(0)
        parts.clear()
        rate = hooks.learning_rate(step)
        with timed(OPTIMIZER):
            skipped = engine.step(rate)
        tokens = fed.batch.count_tokens()
        window.add(fed.batch.num_instances, tokens)
        began = time.perf_counter()
        hooks.step_done(step, fed.batch.num_instances, tokens)
        window.leave_out(time.perf_counter() - began)
        logged = next_step % hooks.log_every_steps == 0
        losses = None
        if logged or guard.needs_values:
            losses = _mean_losses(loss_parts, objective)
        pending.append(_Pending(step, instances, skipped, loss_parts, losses))
        if logged and losses is not None:
            metrics = window.metrics(losses)
            step_seconds.append(metrics["step_seconds"])
            hooks.log(step, metrics | engine.metrics() | {"learning_rate": rate})
        stopped = stop.answer()
        due = stopped or hooks.checkpoint_due(next_step)
        saves = due and next_step < steps.stop
        if logged or due or guard.needs_values or skipped is True:
            go_back = _judge(pending, engine, objective, hooks, guard)
            if go_back is not None:
                return StageTrace(next_step, step_seconds, go_back=go_back)
        if saves:
            watchdog.doing(f"the checkpoint of step {next_step}")
            with window.saving():
                saved = hooks.checkpoint(next_step, stopped)
            if saved is False:
                trace = StageTrace(next_step, step_seconds, unsaved)
                return replace(trace, go_back=trace.not_finite())
            if saved:
                unsaved = None
        if stopped:
            return StageTrace(next_step, step_seconds, unsaved, stopped=True)
        watchdog.waiting_for_data(next_step)
    go_back = _judge(pending, engine, objective, hooks, guard)
    return StageTrace(next_step, step_seconds, unsaved, go_back=go_back)


@dataclass(frozen=True)
class _Pending:
    """A step that was made, and whose flag the host has not read."""

    step: int
    instances: tuple[int, int]
    skipped: bool | Tensor
    loss_parts: Tensor  # (losses,) of this rank
    losses: dict[str, float] | None  # of the global batch, where they have been read


def _judge(
    pending: list[_Pending],
    engine: StageEngine,
    objective: Objective,
    hooks: Hooks,
    guard: StepGuard,
) -> GoBack | None:
    """Tell the guard about the `pending` steps, which are taken from the list. A collective where a
    step was skipped; every rank has the same flags."""
    made_steps, verdict = list(pending), None
    pending.clear()
    for made in made_steps:
        skipped = bool(made.skipped)
        losses = made.losses
        if skipped and losses is None:
            losses = _mean_losses(made.loss_parts, objective)
        loss = None if losses is None else losses["loss"]
        result = StepResult(
            made.step,
            made.instances,
            skipped,
            loss=loss,
            grad_norm=engine.grad_norm() if guard.needs_values else None,
            scale_overflow=skipped
            and engine.scales_dynamically
            and loss is not None
            and math.isfinite(loss),
        )
        if skipped:
            hooks.skipped(result)
        if result.scale_overflow and engine.loss_scale_is_exhausted():
            raise DivergenceError(
                f"train.precision: fp16: the gradient of step {made.step} overflows at a loss scale of "
                f"{engine.loss_scale():g}, the least that fp16.min_loss_scale allows. The model's "
                "numbers don't fit fp16: lower optimizer.learning_rate, or train in bf16 or fp32"
            )
        verdict = verdict or guard.observe(result)
    return verdict


def evaluate_losses(
    engine: StageEngine,
    feed: Feed,
    batches: Iterable[GlobalBatch],
    objective: Objective,
    stop: StopRequest,
) -> dict[str, float] | None:
    """Held-out mean losses over all of `batches`, without dropout; None where `stop` ends it early.
    A collective."""
    denominators = torch.zeros(len(objective.losses), dtype=torch.float64)

    def counted() -> Iterator[GlobalBatch]:
        for batch in batches:
            denominators.add_(torch.tensor(batch.denominators))
            yield batch

    sums: list[Tensor] = []
    for inputs in feed.evaluation(counted()):
        stop.ask()
        sums.append(engine.evaluate(inputs).double())
        if stop.answer():
            return None
    total = torch.stack(sums).sum(0)
    dist.all_reduce(total)
    means = total.cpu() / denominators
    return {
        f"eval_{name}_loss": mean
        for name, mean in zip(objective.losses, means.tolist(), strict=True)
    }


def _mean_losses(parts: Tensor, objective: Objective) -> dict[str, float]:
    """The global batch's losses from this rank's `parts`, (losses,). A collective; synchronises."""
    summed = parts.double()
    dist.all_reduce(summed)
    values = summed.tolist()
    named = {f"{name}_loss": value for name, value in zip(objective.losses, values, strict=True)}
    return {"loss": sum(values, start=0.0), **named}


class _Window:
    """Time and traffic since the last log line."""

    def __init__(self, device: torch.device, traffic: Traffic) -> None:
        self._device, self._traffic = device, traffic
        self._saving = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self._traffic.take()
        self._steps = self._instances = self._tokens = 0
        self._waited = 0.0
        self._began = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Time just spent on what was not training, such as writing a profile."""
        self._began += seconds

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint, which is left out: the window begins anew after it."""
        began = time.perf_counter()
        yield
        self.restart()
        self._saving += self._began - began

    def waiting_for(self, batches: Iterable[GlobalBatch]) -> Iterator[GlobalBatch]:
        """The batches; how long each was waited for is counted."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            with timed(DATA):
                batch = next(iterator, None)
            if batch is None:
                return
            self._waited += time.perf_counter() - began
            yield batch

    def add(self, instances: int, tokens: int) -> None:
        self._steps += 1
        self._instances += instances
        self._tokens += tokens

    def metrics(self, losses: dict[str, float]) -> dict[str, Any]:
        """Rates of the window, which starts anew. `losses` were read from the device: it's idle. A
        collective, for the tokens of all ranks."""
        seconds = time.perf_counter() - self._began
        steps, instances, waited = self._steps, self._instances, self._waited
        tokens = torch.tensor(self._tokens, device=self._device)
        dist.all_reduce(tokens)
        saving, self._saving = self._saving, 0.0
        traffic = self._traffic.take()
        self.restart()
        return (
            losses
            | memory_metrics(self._device)
            | {
                "step_seconds": seconds / steps,
                "sequences_per_second": instances / seconds,
                "tokens_per_second": int(tokens) / seconds,
                "data_wait_seconds": waited / steps,
                "checkpoint_seconds": saving,
                "elements_reduced": traffic.gradients_reduced // steps,
                "elements_gathered": traffic.parameters_gathered // steps,
            }
        )
