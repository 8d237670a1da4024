"""Run by test_partition.py under a launcher: read and write by name, for every wrapper.

Weights and moments are drawn so that each element is its own: a slice that was taken from the
wrong place, or written to it, can't go unseen. bf16 and fp16 can't hold them.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from torch import Tensor, nn

from mslt_ds.distributed.world import join, world_from_environment
from mslt_ds.errors import CheckpointError, EnvironmentProblem
from mslt_ds.optim.masters import NamedMasters

# Prime sizes, a parameter as large as all others together, one element, sizes below the world's.
SHAPES = [(7, 11), (1,), (3,), (13, 5), (97,), (2, 3, 5), (19,), (1, 1), (31, 9)]


class Sum(nn.Module):
    """A loss in which every element of every parameter has a gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES
        )

    def forward(self, scale: Tensor) -> Tensor:
        return torch.stack([((w * scale) ** 2).sum() + w.sum() for w in self.weights]).sum()


def drawn(seed: int) -> dict[str, Tensor]:
    """fp32 numbers of full precision for every parameter."""
    generator = torch.Generator().manual_seed(seed)
    return {f"weights.{i}": torch.randn(s, generator=generator) for i, s in enumerate(SHAPES)}


def build(
    precision: str, zero: dict, groups: list[list[int]], optimizer: str
) -> tuple[Any, dict[str, nn.Parameter]]:
    model = Sum()
    names = dict(model.named_parameters())
    parameters = list(model.parameters())
    settings = [{"params": [parameters[i] for i in members]} for members in groups]
    kind: dict[str, Any] = {optimizer: True}  # fused or foreach
    adamw = torch.optim.AdamW(settings, lr=1e-3, weight_decay=0.1, **kind)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    if precision.startswith("bf16"):
        config["bf16"] = {"enabled": True}
    if precision == "bf16+fp32":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=config)
    return engine, names


def train(engine: Any, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        dtype = next(engine.module.parameters()).dtype
        engine.backward(engine(torch.tensor(0.5 + 0.1 * step, dtype=dtype)))
        engine.step()


def equal(left: dict, right: dict, what: str) -> None:
    if left.keys() != right.keys():
        raise SystemExit(f"{what}: names differ: {left.keys() ^ right.keys()}")
    for name in left:
        if isinstance(left[name], dict):
            equal(left[name], right[name], f"{what} {name}")
        elif isinstance(left[name], Tensor):
            if left[name].dtype != torch.float32 or not torch.equal(left[name], right[name]):
                raise SystemExit(f"{what}: {name} differs")
        elif left[name] != right[name]:
            raise SystemExit(f"{what}: {name} is {left[name]}, not {right[name]}")


def check_case(
    label: str, precision: str, zero: dict, groups: list[list[int]], optimizer: str
) -> tuple[str, dict[str, Tensor], dict]:
    engine, names = build(precision, zero, groups, optimizer)
    state = NamedMasters.bind(engine, names)
    low = {name: p.detach().float().cpu() for name, p in names.items()}

    # A fresh engine: masters made from the low-precision copies, no state, no phantom step.
    equal(state.read_weights(), low, f"{label}: fresh masters")
    equal(state.read_optimizer_state(), {}, f"{label}: fresh state")

    # What is written is read back bit for bit; the model holds it cast down.
    weights = drawn(2)
    state.write_weights({**weights, "elsewhere": torch.zeros(3)})
    equal(state.read_weights(), weights, f"{label}: written masters")
    for name, parameter in names.items():
        if not torch.equal(parameter.detach(), weights[name].to(parameter.dtype)):
            raise SystemExit(f"{label}: {name} of the model isn't the master cast down")

    first, second = drawn(3), drawn(4)
    moments = {
        f"weights.{i}": {
            "exp_avg": first[f"weights.{i}"],
            "exp_avg_sq": second[f"weights.{i}"].square(),
            "step": 5 + age,
        }
        for age, members in enumerate(groups)
        for i in members
        if age != 1  # the second group begins anew
    }
    state.write_optimizer_state(moments)
    equal(state.read_optimizer_state(), moments, f"{label}: written state")

    # The optimizer goes on from it, and another engine that gets its state goes on just so.
    NamedMasters.bind(engine, names)
    train(engine, 2)
    middle_weights, middle_state = state.read_weights(), state.read_optimizer_state()
    NamedMasters.bind(engine, names)
    equal(state.read_weights(), middle_weights, f"{label}: bound again")
    train(engine, 2, first=2)
    end_weights, end_state = state.read_weights(), state.read_optimizer_state()

    other, other_names = build(precision, zero, groups, optimizer)
    other_state = NamedMasters.bind(other, other_names)
    other_state.write_weights(middle_weights)
    other_state.write_optimizer_state(middle_state)
    train(other, 2, first=2)
    equal(other_state.read_weights(), end_weights, f"{label}: continued weights")
    equal(other_state.read_optimizer_state(), end_state, f"{label}: continued state")
    steps = {name: end_state[name]["step"] for name in names}
    expected = {f"weights.{i}": (9 + a if a != 1 else 4) for a, g in enumerate(groups) for i in g}
    equal(steps, expected, f"{label}: step counts")

    # Written state can be taken back too.
    state.write_optimizer_state({})
    equal(state.read_optimizer_state(), {}, f"{label}: cleared state")
    wrapper = type(engine.optimizer).__name__
    engine.destroy()
    other.destroy()
    return wrapper, end_weights, end_state


def check_fused_wrapper() -> str:
    """FP16_Optimizer: DeepSpeed picks it for its CUDA FusedAdam only, so it is made by hand here."""
    model = Sum().bfloat16()
    names = dict(model.named_parameters())
    adamw = torch.optim.AdamW(model.parameters(), lr=0.5, weight_decay=0.9)
    wrapper = FP16_Optimizer(adamw, low_precision_dtype=torch.bfloat16)
    engine = SimpleNamespace(optimizer=wrapper, global_steps=0)
    state = NamedMasters.bind(engine, names)
    low = {name: p.detach().float() for name, p in names.items()}
    equal(state.read_weights(), low, "fused wrapper: fresh masters")
    equal(state.read_optimizer_state(), {}, "fused wrapper: fresh state")
    weights = drawn(2)
    state.write_weights(weights)
    moments = {
        name: {"exp_avg": w, "exp_avg_sq": w.square(), "step": 3} for name, w in drawn(3).items()
    }
    state.write_optimizer_state(moments)
    equal(NamedMasters.bind(engine, names).read_weights(), weights, "fused wrapper: masters")
    equal(state.read_optimizer_state(), moments, "fused wrapper: state")
    return type(wrapper).__name__


def check_refusals() -> None:
    engine, names = build("fp32", {"stage": 1}, [list(range(len(SHAPES)))], "fused")
    for wrong in (
        {name: p for name, p in names.items() if name != "weights.0"},
        {**names, "weights.99": nn.Parameter(torch.zeros(2))},
    ):
        try:
            NamedMasters.bind(engine, wrong)
        except EnvironmentProblem as error:
            print("refused:", error)
        else:
            raise SystemExit("an incomplete set of names was accepted")
    state = NamedMasters.bind(engine, names)
    weights, zeros = drawn(2), {name: torch.zeros_like(w) for name, w in drawn(2).items()}
    moments = {n: {"exp_avg": z, "exp_avg_sq": z, "step": 3} for n, z in zeros.items()}
    refused: list[tuple[Any, Any]] = [
        (state.write_weights, {n: w for n, w in weights.items() if n != "weights.4"}),
        (state.write_weights, {**weights, "weights.4": torch.zeros(3)}),
        (
            state.write_optimizer_state,
            {**moments, "weights.2": {**moments["weights.2"], "step": 4}},
        ),
        (state.write_optimizer_state, {n: m for n, m in moments.items() if n != "weights.2"}),
        (state.write_optimizer_state, {**moments, "weights.2": {"step": 3}}),
    ]
    for call, argument in refused:
        try:
            call(argument)
        except CheckpointError as error:
            print("refused:", error)
        else:
            raise SystemExit(f"{call.__name__} accepted what it can't hold")
    # A master that isn't its parameter's is seen.
    engine.optimizer.single_partition_of_fp32_groups[0].data.add_(1e-3)
    try:
        NamedMasters.bind(engine, names)
    except EnvironmentProblem as error:
        print("refused:", error)
    else:
        raise SystemExit("a wrong master was bound")
    engine.destroy()


def main() -> None:
    join(world_from_environment(os.environ), torch.device("cpu"), os.environ)
    every = list(range(len(SHAPES)))
    one, several = [every], [[0, 3, 8], [1, 7], [6, 2, 5, 4]]
    offload = {"offload_optimizer": {"device": "cpu"}}
    zeros = {
        "0": {"stage": 0},
        "1": {"stage": 1},
        "2": {"stage": 2},
        "1rr": {"stage": 1, "round_robin_gradients": True},
        "2rr": {"stage": 2, "round_robin_gradients": True},
        "2aligned": {"stage": 2, "round_robin_gradients": True, "parameter_alignment": True},
        "1offload": {"stage": 1, **offload},
        "2offload": {"stage": 2, **offload},
    }
    # Each of the precisions, ways of ZeRO and groups with each of the others.
    cases = [
        (precision, zero, (one, several)[(place + number) % 2], "fused")
        for place, precision in enumerate(("fp32", "bf16"))
        for number, zero in enumerate(zeros)
    ]
    cases += [("bf16+fp32", "1", groups, "fused") for groups in (one, several)]
    cases += [("fp32", "0", several, "foreach"), ("bf16", "1", several, "foreach")]
    seen = set()
    references: dict[tuple, tuple] = {}
    for precision, zero, groups, optimizer in cases:
        label = f"{precision} zero {zero} {len(groups)} group(s) {optimizer}"
        wrapper, weights, state = check_case(label, precision, zeros[zero], groups, optimizer)
        seen.add(wrapper)
        if precision == "fp32":  # ZeRO changes where numbers lie, not the numbers
            expected = references.setdefault((len(groups), optimizer), (weights, state))
            for name in weights:
                torch.testing.assert_close(weights[name], expected[0][name], rtol=1e-6, atol=1e-7)
        if dist.get_rank() == 0:
            print(f"{wrapper}: {label}: ok", flush=True)
    seen.add(check_fused_wrapper())
    check_refusals()
    if dist.get_rank() == 0:
        print("wrappers:", " ".join(sorted(seen)))
        print("all cases passed")


if __name__ == "__main__":
    sys.exit(main())
