"""LAMB against somebody else's: pytorch_optimizer's, wherever both have the option.

Theirs differs in three places, which these tests reach by other words: it corrects the first
moment's bias in the learning rate, clamps the weight's norm and not the ratio, and adds eps to the
norm of the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor

from mslt_ds.optim import Lamb, LambOptions

SHAPES = [(7, 11), (1,), (13,), (3, 5, 2), (9_001,)]
RATE, STEPS = 0.01, 20
ALL = {"adapt": "all", "bias_correction": False}
UNBIASED = {"adam_debias": True}  # their word for a step that no correction changes


class Unclamped(pytorch_optimizer.Lamb):
    """Theirs without its clamp of the weight's norm at 10."""

    clamp = math.inf


def tensors(seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]


def difference(
    ours: Lamb,
    theirs: torch.optim.Optimizer,
    rate: Callable[[int], float] = lambda step: RATE,
) -> float:
    """The largest between the weights of the two after some steps, each on its own gradients.

    rate: our learning rate of a step, counted from 1
    """
    for step in range(1, STEPS + 1):
        for optimizer in (ours, theirs):
            for group in optimizer.param_groups:
                for index, parameter in enumerate(group["params"]):
                    noise = torch.randn(
                        parameter.shape, generator=torch.Generator().manual_seed(100 * step + index)
                    )
                    parameter.grad = (0.3 * parameter.detach() + noise) * 10.0**-index
        for group in ours.param_groups:
            group["lr"] = rate(step)
        ours.step()
        theirs.step()
    pairs = [
        (left, right)
        for ours_group, theirs_group in zip(ours.param_groups, theirs.param_groups, strict=True)
        for left, right in zip(ours_group["params"], theirs_group["params"], strict=True)
    ]
    return max((left - right).abs().max().item() for left, right in pairs)


def made(
    kind: Any, values: list[Tensor], settings: dict[str, Any], decay: float = 0.1, **common: Any
) -> Any:
    common = {"betas": (0.9, 0.99), "eps": 1e-6, **common}
    parameters = [torch.nn.Parameter(value.clone()) for value in values]
    return kind(parameters, lr=RATE, weight_decay=decay, **common, **settings)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {}),
        ({"gradient_normalization": "clip", "max_grad_norm": 2.0},
         {"pre_norm": True, "max_grad_norm": 2.0}),
        ({"min_trust_ratio": 1.0, "max_trust_ratio": 1.0}, {"adam": True}),
    ],
    ids=["no clamp", "clipped to a norm", "ratio clamped to 1"],
)  # fmt: skip
def test_equal_steps(options: dict[str, Any], theirs: dict[str, Any], foreach: bool) -> None:
    ours = made(Lamb, tensors(1), {"options": LambOptions(**ALL, **options)})
    same = {"weight_decouple": False, "foreach": foreach, **UNBIASED, **theirs}
    assert difference(ours, made(Unclamped, tensors(1), same)) < 1e-5


def test_their_bias_correction_is_a_schedule() -> None:
    ours = made(Lamb, tensors(1), {"options": LambOptions(**ALL)})
    theirs = made(Unclamped, tensors(1), {"weight_decouple": False})
    assert difference(ours, theirs, lambda step: RATE / (1 - 0.9**step)) < 1e-5


def test_without_weight_decay() -> None:
    ours = made(Lamb, tensors(1), {"options": LambOptions(**ALL)}, decay=0.0)
    theirs = made(Unclamped, tensors(1), UNBIASED, decay=0.0)
    assert difference(ours, theirs) < 1e-5


def test_their_clamp() -> None:
    """Betas of 0 leave the gradient's sign for an update: of n elements, its norm is sqrt(n), and
    their bound on the weight's norm is one on the ratio. Some weights are beyond it, some not."""
    count = 400
    values = [torch.randn(count, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    values = [values[0], 0.2 * values[1], 0.4 * values[2]]  # norms of 20, 4 and 8
    bound = pytorch_optimizer.Lamb.clamp
    assert [value.norm().item() > bound for value in values] == [True, False, False]
    options = LambOptions(**ALL, max_trust_ratio=bound / math.sqrt(count))
    common: dict[str, Any] = {"decay": 0.0, "betas": (0.0, 0.0), "eps": 1e-12}
    ours = made(Lamb, values, {"options": options}, **common)
    theirs = made(pytorch_optimizer.Lamb, values, UNBIASED, **common)
    assert difference(ours, theirs) < 1e-5
    unclamped = made(Lamb, values, {"options": LambOptions(**ALL)}, **common)
    theirs = made(pytorch_optimizer.Lamb, values, UNBIASED, **common)
    assert difference(unclamped, theirs) > 1e-2
