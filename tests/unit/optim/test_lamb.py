"""The fast paths against the reference, and the reference against another implementation."""

from __future__ import annotations

import importlib.util
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.optim import Lamb, LambOptions
from mslt_ds.optim.lamb_reference import lamb_reference_step

SHAPES = {"a": (7, 11), "b": (1,), "c": (70_001,), "d": (3, 5, 2), "e": (13,)}
DECAY = {"a": 0.1, "b": 0.0, "c": 0.02, "d": 0.1, "e": 0.0}
SETTINGS = {"betas": (0.9, 0.99), "eps": 1e-6}
OPTIONS = {
    "default": LambOptions(),
    "no bias correction": LambOptions(bias_correction=False),
    "decay in the gradient": LambOptions(decay="gradient"),
    "all adapt": LambOptions(adapt="all"),
    "clamped": LambOptions(adapt="all", min_trust_ratio=0.01, max_trust_ratio=0.3),
    "clip": LambOptions(gradient_normalization="clip", max_grad_norm=2.0),
    "unit": LambOptions(gradient_normalization="unit", adapt="all"),
}
BACKENDS = ["torch", "numba"]


def start(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}


def gradients(step: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A gradient that follows the weights and has noise of its own, different in size."""
    generator = torch.Generator().manual_seed(100 + step)
    return {
        name: (0.3 * w + torch.randn(w.shape, generator=generator)) * 10.0**-index
        for index, (name, w) in enumerate(weights.items())
    }


def groups_of(parameters: dict[str, torch.nn.Parameter]) -> list[dict]:
    return [
        {"params": [p for n, p in parameters.items() if DECAY[n] == decay], "weight_decay": decay}
        for decay in sorted(set(DECAY.values()))
    ]


def reference(options: LambOptions, steps: int, lr: float) -> dict[str, Tensor]:
    """The trajectory in fp64."""
    weights = start(torch.float64)
    state: dict[str, tuple[Tensor, Tensor, int]] = {}
    for step in range(steps):
        weights, state, _ = lamb_reference_step(
            weights,
            gradients(step, weights),
            state,
            lr=lr,
            weight_decay=DECAY,
            options=options,
            **SETTINGS,
        )
    return weights


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("label", OPTIONS)
def test_equals_the_reference(label: str, backend: str) -> None:
    options = OPTIONS[label]
    parameters = {n: torch.nn.Parameter(w) for n, w in start().items()}
    optimizer = Lamb(groups_of(parameters), lr=0.01, options=options, backend=backend, **SETTINGS)
    for step in range(30):
        for name, gradient in gradients(step, {n: p.detach() for n, p in parameters.items()}).items():
            parameters[name].grad = gradient
        optimizer.step()
    expected = reference(options, 30, lr=0.01)
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.detach(), expected[name].float(), rtol=2e-6, atol=2e-6
        )
