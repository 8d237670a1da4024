"""bf16 and fp16 by every wrapper, against the unsharded reference: `deepspeed lamb_low_precision.py`.

lamb_cases.py runs it on the CPU; `pytest -m gpu` runs it by itself, with one process on a GPU.
DeepSpeed refuses fp16 on a CPU for want of speed, not of arithmetic; here it's told otherwise.
"""

from __future__ import annotations

import sys
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from mslt_ds.optim import LambOptions
from mslt_ds.optim.lamb_reference import lamb_reference_step
from tests.distributed.scripts.lamb_net import (
    ACCUMULATION,
    DECAY,
    OPTIMIZER,
    Net,
    build,
    largest_difference,
    report,
    weights_of,
)

STEPS, OVERFLOW_BEFORE = 20, 10
DTYPES = {"bf16": torch.bfloat16, "bf16+fp32": torch.bfloat16, "fp16": torch.float16}
SUB_GROUPS = {"stage": 3, "sub_group_size": 300, "stage3_param_persistence_threshold": 20}


def check_low_precision() -> None:
    """Masters equal the reference's to fp32 rounding, and an overflow is no step.

    A loss that is linear in the weights has gradients that both formats hold and no rank can change.
    """
    accelerator: Any = get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    cases: list[tuple[str, dict[str, Any]]] = [("bf16+fp32", {"stage": 1})]
    for precision in ("bf16", "fp16"):
        cases += [(precision, {"stage": stage}) for stage in (0, 1, 2)] + [(precision, SUB_GROUPS)]
    for precision, zero in cases:
        check_case(f"{precision}, zero {zero['stage']}", precision, zero)


def check_case(label: str, precision: str, zero: dict[str, Any]) -> None:
    engine, optimizer = build(zero, 0.0, precision=precision)
    dtype = DTYPES[precision]
    weights = {name: weight.double() for name, weight in weights_of(engine).items()}
    low = {name: p.detach() for name, p in Net(1).to(dtype).named_parameters()}
    report(f"{label}, initialised", largest_difference(weights, low), 0.0)
    engine.module.forward = lambda factors, module=engine.module: torch.stack(
        [(p * factors[name]).sum() for name, p in module.named_parameters()]
    ).sum()
    state: dict[str, tuple[Tensor, Tensor, int]] = {}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        factors = {
            name: torch.randint(-8, 9, weight.shape, generator=generator).to(dtype) / 8
            for name, weight in weights.items()
        }
        if step == OVERFLOW_BEFORE:
            before = weights_of(engine)
            step_with(engine, {name: f * torch.inf for name, f in factors.items()})
            report(f"{label}, overflow", largest_difference(weights_of(engine), before), 0.0)
        step_with(engine, factors)
        weights, state, _ = lamb_reference_step(
            weights,
            {name: f.double() for name, f in factors.items()},
            state,
            weight_decay=DECAY,
            options=LambOptions(),
            **OPTIMIZER,
        )
    report(label, largest_difference(weights_of(engine), weights), 1e-6)
    counts = {int(held["step"]) for held in optimizer.state.values()}
    if counts != {STEPS}:
        raise SystemExit(f"{label}: counts {counts} for {STEPS} steps and an overflow")
    engine.destroy()


def step_with(engine: Any, factors: dict[str, Tensor]) -> None:
    """One step whose gradients are the factors."""
    factors = {name: factor.to(engine.device) for name, factor in factors.items()}
    for _ in range(ACCUMULATION):
        loss = engine(factors)
        if engine.fp16_enabled() and not engine.zero_optimization():
            # DeepSpeed's wrapper of ZeRO 0 divides by the scale and leaves it to others to multiply.
            loss = loss * engine.optimizer.loss_scale_config.cur_scale
        engine.backward(loss)
        engine.step()


if __name__ == "__main__":
    deepspeed.init_distributed()
    check_low_precision()
    print("all cases passed")
    sys.exit(0)
