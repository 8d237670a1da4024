"""Run by test_lamb.py under a launcher: LAMB under ZeRO against the unsharded reference.

Every rank sees its own part of a batch; the reference, in fp64 on rank 0, the whole of it. The model
is a small regression whose gradients depend on the weights, so an error grows.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.optim import Lamb, LambOptions
from mslt_ds.optim.lamb_reference import lamb_reference_step
from mslt_ds.optim.partition import EngineState

STEPS, PER_RANK, ACCUMULATION, CLIP = 100, 3, 2, 0.05
OPTIMIZER: dict[str, Any] = {"lr": 0.004, "betas": (0.9, 0.99), "eps": 1e-6}


class Net(nn.Module):
    """Prime widths; a first layer larger than the rest together, so it straddles partitions."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.3 * torch.randn(shape, generator=generator))

        self.first, self.first_bias = drawn(31, 17), drawn(31)
        self.norm = nn.Parameter(torch.ones(31))
        self.second, self.second_bias = drawn(7, 31), drawn(7)
        self.third, self.scale = drawn(3, 7), drawn(1)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = torch.tanh(inputs @ self.first.T + self.first_bias) * self.norm
        hidden = torch.tanh(hidden @ self.second.T + self.second_bias)
        return (hidden @ self.third.T * self.scale - targets).square().mean()


DECAY = {name: (0.0 if p.dim() < 2 else 0.1) for name, p in Net(0).named_parameters()}


def batch(step: int, micro: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed((step * ACCUMULATION + micro) * 64 + rank)
    inputs = torch.randn(PER_RANK, 17, generator=generator)
    return inputs.to(dtype), torch.sin(inputs[:, :3] * 2).to(dtype)


def reference(options: LambOptions, clip: float) -> dict[str, Tensor]:
    """fp64, unsharded, on the whole batch."""
    model = Net(1).double()
    names = dict(model.named_parameters())
    state: dict[str, tuple[Tensor, Tensor, int]] = {}
    ranks = dist.get_world_size()
    for step in range(STEPS):
        parts = [
            batch(step, micro, rank, torch.float64)
            for micro in range(ACCUMULATION)
            for rank in range(ranks)
        ]
        model.zero_grad()
        model(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))).backward()
        gradients = {n: p.grad for n, p in names.items() if p.grad is not None}
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        if clip:
            factor = 1.0 / max(1.0, (norm.item() + 1e-6) / clip)
            gradients = {n: g * factor for n, g in gradients.items()}
        weights = {n: p.detach() for n, p in names.items()}
        weights, state, _ = lamb_reference_step(
            weights, gradients, state, weight_decay=DECAY, options=options, **OPTIMIZER
        )
        for name, parameter in names.items():
            parameter.data.copy_(weights[name])
    return {name: p.detach().float() for name, p in names.items()}


def build(
    zero: dict[str, Any],
    clip: float,
    *,
    options: LambOptions | None = None,
    precision: str = "fp32",
    groups: int = 2,
    backend: Any = "auto",
    bind: bool = True,
) -> tuple[Any, Lamb]:
    model = Net(1)
    names = dict(model.named_parameters())
    if groups == 2:
        settings = [
            {"params": [p for n, p in names.items() if DECAY[n] == decay], "weight_decay": decay}
            for decay in (0.1, 0.0)
        ]
    else:  # one group for each parameter: some are smaller than the number of ranks
        settings = [{"params": [p], "weight_decay": DECAY[n]} for n, p in names.items()]
    optimizer = Lamb(settings, options=options, backend=backend, **OPTIMIZER)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": PER_RANK,
        "gradient_accumulation_steps": ACCUMULATION,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    if precision.startswith("bf16"):
        config["bf16"] = {"enabled": True}
    if precision == "bf16+fp32":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if bind:
        optimizer.bind(engine)
    return engine, optimizer


def train(engine: Any, steps: range, dtype: torch.dtype = torch.float32) -> None:
    for step in steps:
        for micro in range(ACCUMULATION):
            engine.backward(engine(*batch(step, micro, dist.get_rank(), dtype)))
            engine.step()


def weights_of(engine: Any) -> dict[str, Tensor]:
    if engine.zero_optimization_stage() == 3:
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
            return {n: p.detach().clone() for n, p in engine.module.named_parameters()}
    return EngineState.bind(engine, dict(engine.module.named_parameters())).read_weights()


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max((left[n].double() - right[n].double()).abs().max().item() for n in left)


def report(label: str, difference: float, limit: float) -> None:
    if not difference <= limit:  # a NaN is no pass
        raise SystemExit(f"{label}: differs by {difference:.2e}, allowed {limit:.0e}")
    if dist.get_rank() == 0:
        print(f"{label}: {difference:.1e}", flush=True)


def check_trajectories(*, every: bool) -> None:
    """fp32, 100 steps, against the reference."""
    offload = {"offload_optimizer": {"device": "cpu"}}
    clamped = LambOptions(adapt="all", min_trust_ratio=0.01, max_trust_ratio=0.3)
    unit = LambOptions(gradient_normalization="unit", adapt="all")
    clipping = LambOptions(gradient_normalization="clip", max_grad_norm=CLIP)
    robin = {"round_robin_gradients": True}
    cases: list[tuple[str, dict[str, Any], float, dict[str, Any]]] = [
        ("zero 0", {"stage": 0}, CLIP, {}),
        ("zero 1", {"stage": 1}, CLIP, {}),
        ("zero 2", {"stage": 2}, CLIP, {}),
        ("zero 1, round robin", {"stage": 1, **robin}, CLIP, {}),
        ("zero 2, offload", {"stage": 2, **offload}, CLIP, {}),
        ("zero 1, a group for each", {"stage": 1}, CLIP, {"groups": 7}),
        ("zero 1, clamped", {"stage": 1}, 0.0, {"options": clamped}),
        ("zero 1, unit gradient", {"stage": 1}, CLIP, {"options": unit}),
    ]
    several = {"stage": 3, "sub_group_size": 300, "stage3_param_persistence_threshold": 20}
    cases.append(("zero 3", several, CLIP, {}))
    if every:
        aligned = {"stage": 2, **robin, "parameter_alignment": True}
        cases += [
            ("zero 0, unbound", {"stage": 0}, CLIP, {"bind": False}),
            ("zero 1, overlapped", {"stage": 1, "overlap_comm": True}, CLIP, {}),
            ("zero 2, round robin, aligned", aligned, 0.0, {}),
            ("zero 1, offload", {"stage": 1, **offload}, CLIP, {}),
            ("zero 2, torch", {"stage": 2}, CLIP, {"backend": "torch"}),
            ("zero 0, own clipping", {"stage": 0}, 0.0, {"options": clipping}),
            ("zero 3, one sub-group", {"stage": 3}, CLIP, {"options": unit}),
            ("zero 3, offload", {**several, **offload}, CLIP, {}),
            ("zero 2, own clipping", {"stage": 2}, 0.0, {"options": clipping}),
        ]
    references: dict[Any, dict[str, Tensor]] = {}
    start = {name: p.detach() for name, p in Net(1).named_parameters()}
    for label, zero, clip, keywords in cases:
        options = keywords.get("options", LambOptions())
        engine, optimizer = build(zero, clip, **keywords)
        train(engine, range(STEPS))
        key = options, clip
        if key not in references:
            references[key] = reference(options, clip)
            if largest_difference(references[key], start) < 0.03:
                raise SystemExit(f"{label}: the reference hardly moves")
        report(label, largest_difference(weights_of(engine), references[key]), 1e-6)
        if keywords.get("bind", True):
            ratios = optimizer.trust_ratios()["trust_ratio"]
            if not {"first", "second", "third"} <= set(ratios):
                raise SystemExit(f"{label}: trust ratios by parameter are missing: {ratios}")
        engine.destroy()


def check_low_precision() -> None:
    """bf16, given gradients: masters equal the reference's to fp32 rounding, by every wrapper.

    A loss that is linear in the weights has gradients that bf16 holds and no rank can change.
    """
    for label, zero, precision in (
        ("bf16 exact, zero 0", {"stage": 0}, "bf16"),
        ("bf16 exact, zero 1", {"stage": 1}, "bf16"),
        ("bf16 exact, zero 2", {"stage": 2}, "bf16"),
        ("bf16 exact, fp32 accumulation", {"stage": 1}, "bf16+fp32"),
    ):
        engine, _ = build(zero, 0.0, precision=precision)
        names = dict(engine.module.named_parameters())
        weights = {n: w.double() for n, w in weights_of(engine).items()}
        low = {n: p.detach() for n, p in Net(1).bfloat16().named_parameters()}
        report(f"{label}, initialised", largest_difference(weights, low), 0.0)
        state: dict[str, tuple[Tensor, Tensor, int]] = {}
        factors: dict[str, Tensor] = {}
        engine.module.forward = lambda factors, module=engine.module: torch.stack(
            [(p * factors[n]).sum() for n, p in module.named_parameters()]
        ).sum()
        for step in range(20):
            generator = torch.Generator().manual_seed(step)
            factors = {
                n: torch.randint(-8, 9, p.shape, generator=generator).to(torch.bfloat16) / 8
                for n, p in names.items()
            }
            for _ in range(ACCUMULATION):
                engine.backward(engine(factors))
                engine.step()
            weights, state, _ = lamb_reference_step(
                weights,
                {n: f.double() for n, f in factors.items()},
                state,
                weight_decay=DECAY,
                options=LambOptions(),
                **OPTIMIZER,
            )
        report(label, largest_difference(weights_of(engine), weights), 1e-6)
        check_overflow(label, engine, {n: f * torch.inf for n, f in factors.items()})
        engine.destroy()


def check_overflow(label: str, engine: Any, factors: dict[str, Tensor]) -> None:
    """Gradients that aren't finite: DeepSpeed skips the step, nothing of LAMB's has moved."""
    state = EngineState.bind(engine, dict(engine.module.named_parameters()))
    weights, moments = state.read_weights(), state.read_optimizer_state()
    for _ in range(ACCUMULATION):
        engine.backward(engine(factors))
        engine.step()
    report(f"{label}, overflow", largest_difference(state.read_weights(), weights), 0.0)
    for name, held in state.read_optimizer_state().items():
        if held["step"] != moments[name]["step"]:
            raise SystemExit(f"{label}: an overflow counted as a step")
        report(
            f"{label}, moments",
            largest_difference({name: held["exp_avg"]}, {name: moments[name]["exp_avg"]}),
            0.0,
        )


def check_continuation() -> None:
    """A fresh engine that gets weights and state at step 25 goes on bit for bit."""
    whole, _ = build({"stage": 2, "round_robin_gradients": True}, CLIP)
    train(whole, range(25))
    state = EngineState.bind(whole, dict(whole.module.named_parameters()))
    weights, moments = state.read_weights(), state.read_optimizer_state()
    train(whole, range(25, 40))
    other, _ = build({"stage": 1}, CLIP)
    other_state = EngineState.bind(other, dict(other.module.named_parameters()))
    other_state.write_weights(weights)
    other_state.write_optimizer_state(moments)
    train(other, range(25, 40))
    limit = 0.0 if dist.get_world_size() == 1 else 1e-6
    report("continued", largest_difference(weights_of(other), weights_of(whole)), limit)
    if other_state.read_optimizer_state()["first"]["step"] != 40:
        raise SystemExit("continued: wrong step count")
    whole.destroy()
    other.destroy()


def check_refusals() -> None:
    engine, optimizer = build({"stage": 1}, 0.0, bind=False)
    try:
        train(engine, range(1))
    except EnvironmentProblem as error:
        print("refused:", error)
    else:
        raise SystemExit("an unbound step under ZeRO 1 went through")
    other, _ = build({"stage": 0}, 0.0)
    try:
        optimizer.bind(other)
    except EnvironmentProblem as error:
        print("refused:", error)
    else:
        raise SystemExit("bound to another optimizer's engine")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("--every", action="store_true", help="the rarer settings too")
    parser.add_argument("--only-trajectories", action="store_true")
    arguments = parser.parse_args()
    deepspeed.init_distributed("gloo")
    check_trajectories(every=arguments.every)
    if not arguments.only_trajectories:
        check_low_precision()
        check_continuation()
        check_refusals()
    dist.destroy_process_group()
    if arguments.local_rank in (None, "0"):
        print("all cases passed")


if __name__ == "__main__":
    sys.exit(main())
