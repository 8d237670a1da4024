"""Hours and money of a plan on given hardware, beside the same instances trained otherwise.

A step's time is the sum of four parts, none of which hides another: DeepSpeed reduces after the
backward pass.

    forward, backward   operations / (peak rate x utilization x GPUs)
    reduction           a ring's 2 (N - 1) / N passes over the gradient, at the slowest link's bandwidth
    optimizer           bytes of weights, gradients and moments / memory bandwidth
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import RecipeError
from mslt_ds.plan import cost, hardware, memory
from mslt_ds.plan.flops import instance_flops, layer_passes
from mslt_ds.plan.hardware import ASSUMED_UTILIZATION, GPUS_PER_NODE, Gpu
from mslt_ds.plan.methods import STACKING_SHARES
from mslt_ds.plan.stages import Plan, Stage

PAPERS_BACKWARD = 6.0
"""The backward pass with its reduction, in forward passes (Yang et al. 2020)."""
_STREAMS = {"lamb": 10, "adamw": 7}  # fp32 numbers of each parameter that a step reads and writes


@dataclass(frozen=True)
class Cluster:
    """What a plan runs on. network: bytes/s of a node; None within one node."""

    gpus: int
    gpu: Gpu
    network: float | None = None
    utilization: float = ASSUMED_UTILIZATION  # of the peak rate, in forward and backward passes

    @classmethod
    def named(cls, gpus: int, gpu: str, network: str | None) -> Cluster:
        """From the words of a command line, as `h100` and `100gbit`. A network within one node isn't used.

        RecipeError where a word has no meaning, or several nodes have no network.
        """
        kind = hardware.gpu(gpu)
        if nodes(gpus) == 1:
            return cls(gpus, kind)
        if network is None:
            raise RecipeError(
                f"--network: missing; {gpus} GPUs are {nodes(gpus)} nodes of {GPUS_PER_NODE}, so "
                "give the bandwidth of a node, for example 100gbit"
            )
        return cls(gpus, kind, hardware.network_bandwidth(network))

    def check_precision(self, config: RunConfig) -> None:
        """RecipeError where the recipe computes in a format that the GPUs don't have."""
        if config.train.precision == "bf16" and not self.gpu.has_bf16:
            raise RecipeError(
                f"train.precision: bf16, but a {self.gpu.name} has no bf16 arithmetic; choose fp16"
            )

    @property
    def slowest_link(self) -> float:
        """Bytes per second through which a ring of all GPUs passes."""
        return self.gpu.link if self.network is None else min(self.gpu.link, self.network)


@dataclass(frozen=True)
class StepSeconds:
    """The parts of a step's time."""

    forward: float
    backward: float
    reduction: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.reduction + self.optimizer


@dataclass(frozen=True)
class Model:
    """What the arithmetic needs beside a stage."""

    config: RunConfig
    vocab_size: int
    zero_stage: int

    def step_flops(self, stage: Stage) -> float:
        """Operations of one step on its global batch."""
        return instance_flops(self.config, stage, self.vocab_size).total * stage.global_batch_size

    def bytes_reduced(self, stage: Stage, gpus: int) -> int:
        """Gradient bytes that each rank hands to the reduction in one step."""
        elements = cost.elements_reduced_per_step(
            self.config, stage, self.vocab_size, gpus, self.zero_stage
        )
        return elements * memory.number_bytes(self.config.train.precision)

    def reduction_seconds(self, stage: Stage, gpus: int, bandwidth: float) -> float:
        """A ring's time for one step. ZeRO 1 and 2 scatter the sums and gather the weights instead, which
        is as much for one reduction; each further one of ZeRO 2 is half as much."""
        once = cost.trainable_parameters(self.config, stage, self.vocab_size)
        once *= memory.number_bytes(self.config.train.precision)
        moved = once + self.bytes_reduced(stage, gpus)
        return moved * (gpus - 1) / gpus / bandwidth

    def step_seconds(self, stage: Stage, cluster: Cluster) -> StepSeconds:
        flops = instance_flops(self.config, stage, self.vocab_size) * stage.global_batch_size
        share = cluster.utilization * cluster.gpus
        rate = cluster.gpu.peak(self.config.train.precision) * share
        frozen_rate = cluster.gpu.peak(self.config.train.frozen_precision) * share
        parameters = cost.trainable_parameters(self.config, stage, self.vocab_size)
        partitions = cluster.gpus if self.zero_stage else 1
        streams = 4 * _STREAMS[self.config.optimizer.name]
        return StepSeconds(
            forward=flops.prefix / frozen_rate + flops.forward / rate,
            backward=flops.backward / rate,
            reduction=self.reduction_seconds(stage, cluster.gpus, cluster.slowest_link),
            optimizer=parameters / partitions * streams / cluster.gpu.memory_bandwidth,
        )

    def memory(self, stage: Stage, gpus: int) -> int:
        """Bytes of each GPU's tensors."""
        return memory.bytes_per_gpu(
            self.config, stage, self.vocab_size, gpus=gpus, zero_stage=self.zero_stage
        )


StepTime = Callable[[Stage], float]
"""(stage) -> seconds of one of its steps."""


def with_hours(
    description: dict[str, Any],
    model: Model,
    plan: Plan,
    step_time: StepTime,
    *,
    gpus: int,
    price: float | None = None,
    overhead: Sequence[float] = (),
) -> dict[str, Any]:
    """The description of `cost.describe_plan` with times, memory and cost, of the stages and the run, and
    beside its twins.

    price: of a GPU for an hour
    overhead: seconds of each stage that aren't steps: making its engine, evaluation, checkpoints
    """
    extra = list(overhead) or [0.0] * len(plan.stages)
    stages = [
        entry | _figures(model, (stage,), step_time, gpus, price, seconds)
        for entry, stage, seconds in zip(description["stages"], plan.stages, extra, strict=True)
    ]
    run = _figures(model, plan.stages, step_time, gpus, price, sum(extra))
    twins: dict[str, Any] = {}
    for name, shares in (("full", (1.0,)), ("stacking", STACKING_SHARES)):
        twin = twin_plan(model.config, plan, shares)
        if twin is None:
            continue
        figures = _figures(model, twin, step_time, gpus, price, 0.0)
        twins[name] = figures | {
            # Of the steps alone: nobody knows what is between the twin's.
            "share_of_its_hours": _hours_of_steps(run, plan) / figures["hours"],
            "share_by_layer_passes": _passes(plan.stages) / _passes(twin),
        }
    return description | {"stages": stages} | run | {"twins": twins}


def _hours_of_steps(figures: dict[str, Any], plan: Plan) -> float:
    return figures["seconds_per_step"] * plan.total_steps / 3600


def _figures(
    model: Model,
    stages: Sequence[Stage],
    step_time: StepTime,
    gpus: int,
    price: float | None,
    overhead: float,
) -> dict[str, Any]:
    """Of all the stages together. Step values are means over the steps."""
    steps = sum(stage.steps for stage in stages)
    seconds = sum(stage.steps * step_time(stage) for stage in stages)
    hours = (seconds + overhead) / 3600
    figures = {
        "flops": sum(stage.steps * model.step_flops(stage) for stage in stages),
        "seconds_per_step": seconds / steps,
        "hours": hours,
        "gpu_hours": hours * gpus,
        "memory_per_gpu_bytes": max(model.memory(stage, gpus) for stage in stages),
        "bytes_reduced": sum(stage.steps * model.bytes_reduced(stage, gpus) for stage in stages),
    }
    return figures if price is None else figures | {"cost": hours * gpus * price}


def _passes(stages: Sequence[Stage]) -> float:
    return sum(
        stage.steps
        * stage.global_batch_size
        * stage.seq_length
        * layer_passes(stage.depth, stage.trainable_layers, PAPERS_BACKWARD)
        for stage in stages
    )


def twin_plan(config: RunConfig, plan: Plan, shares: tuple[float, ...]) -> tuple[Stage, ...] | None:
    """The same batches with everything trained, at a depth that doubles up to that of the model.

    shares: of the steps, for each depth: (1.0,) is ordinary training, STACKING_SHARES is stacking.
    None if the model's depth can't be halved so often.
    """
    final = config.model.num_hidden_layers
    halvings = 2 ** (len(shares) - 1)
    if config.model.num_blocks % halvings:
        return None
    ends = [round(plan.total_steps * sum(shares[: i + 1])) for i in range(len(shares))]
    found: list[Stage] = []
    for stage in plan.stages:
        start = stage.start_step
        for number, end in enumerate(ends):
            steps = min(end, stage.end_step) - start
            if steps > 0:
                depth = final // halvings * 2**number
                found.append(
                    replace(
                        stage,
                        depth=depth,
                        trainable_layers=depth,
                        train_embeddings=True,
                        steps=steps,
                        start_step=start,
                    )
                )
                start += steps
    return tuple(found)


def scaled_steps(config: RunConfig, factor: float) -> list[str]:
    """`key=value` overrides that multiply the recipe's steps by `factor`, rounded down.

    The shares of the stages and of warm-up and decay stay as they are.
    """
    plan, schedule = config.plan, config.schedule
    given: dict[str, int | None] = {
        f"plan.{key}": getattr(plan, key)
        for key in ("steps_per_stage", "joint_steps", "total_steps")
    }
    stages = plan.stages or []
    if stages:  # total_steps is no more than their sum
        given.pop("plan.total_steps")
    given |= {f"plan.stages.{i}.steps": stage.steps for i, stage in enumerate(stages)}
    given |= {f"plan.stages.{i}.warmup_steps": s.warmup_steps for i, s in enumerate(stages)}
    given |= {"schedule.warmup_steps": schedule.warmup_steps}
    given |= {"schedule.decay_steps": schedule.decay_steps}
    scaled = {key: int(value * factor) for key, value in given.items() if value}
    for key, value in scaled.items():
        if not value and "warmup" not in key:
            raise RecipeError(
                f"--hours: too few: they leave {key} {given[key]} without a step; "
                "give more hours, or plan fewer stages"
            )
    if stages and plan.total_steps is not None:
        scaled["plan.total_steps"] = sum(
            scaled[f"plan.stages.{i}.steps"] for i in range(len(stages))
        )
    return [f"{key}={value}" for key, value in scaled.items()]


def nodes(gpus: int) -> int:
    """Nodes that so many GPUs fill."""
    return -(-gpus // GPUS_PER_NODE)
