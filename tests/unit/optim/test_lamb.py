"""The fast paths against the reference, and the reference against numbers worked out by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.optim import Lamb, LambOptions
from mslt_ds.optim.lamb_reference import lamb_reference_step, lamb_step
from mslt_ds.optim.passes import BackendName
from mslt_ds.optim.pieces import squared_norms
from tests.unit.optim.backends_here import BACKENDS, fewer

SHAPES = {"a": (7, 11), "b": (1,), "c": (70_001,), "d": (3, 5, 2), "e": (13,)}
DECAY = {"a": 0.1, "b": 0.0, "c": 0.02, "d": 0.1, "e": 0.0}
SETTINGS: dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-6}
OPTIONS = {
    "default": LambOptions(),
    "no bias correction": LambOptions(bias_correction=False),
    "decay in the gradient": LambOptions(decay="gradient"),
    "all adapt": LambOptions(adapt="all"),
    "clamped": LambOptions(adapt="all", min_trust_ratio=0.01, max_trust_ratio=0.3),
    "clip": LambOptions(gradient_normalization="clip", max_grad_norm=2.0),
    "unit": LambOptions(gradient_normalization="unit", adapt="all"),
}


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
def test_equals_the_reference(label: str, backend: BackendName) -> None:
    options = OPTIONS[label]
    parameters = {n: torch.nn.Parameter(w) for n, w in start().items()}
    optimizer = Lamb(groups_of(parameters), lr=0.01, options=options, backend=backend, **SETTINGS)
    steps = fewer(30)
    for step in range(steps):
        for name, gradient in gradients(
            step, {n: p.detach() for n, p in parameters.items()}
        ).items():
            parameters[name].grad = gradient
        optimizer.step()
    expected = reference(options, steps, lr=0.01)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), expected[name].float(), rtol=2e-6, atol=2e-6)


def test_reference_by_hand() -> None:
    """Algorithm 2 on numbers that can be followed: the first step's direction is the sign."""
    weight, gradient = torch.tensor([3.0, 4.0]), torch.tensor([0.5, -0.25])
    zeros = torch.zeros(2)
    result = lamb_step(
        weight,
        gradient,
        zeros,
        zeros,
        1,
        lr=0.1,
        betas=(0.9, 0.999),
        eps=0.0,
        weight_decay=0.5,
        options=LambOptions(),
    )
    update = torch.tensor([1.0 + 1.5, -1.0 + 2.0])  # sign of the gradient + decay x weight
    ratio = 5.0 / math.hypot(2.5, 1.0)
    assert result.trust_ratio.item() == pytest.approx(ratio, rel=1e-6)
    torch.testing.assert_close(result.weight, weight - 0.1 * ratio * update)
    torch.testing.assert_close(result.exp_avg, 0.1 * gradient)
    torch.testing.assert_close(result.exp_avg_sq, 0.001 * gradient**2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_undefined_ratio_is_one(backend: BackendName) -> None:
    """Weights of zero move as with Adam; weights without a gradient's direction stay."""
    zero, still = torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.ones(5))
    options = LambOptions(adapt="all", max_trust_ratio=0.5)
    lamb = Lamb([zero, still], lr=0.1, weight_decay=0.0, eps=0.0, options=options, backend=backend)
    zero.grad = torch.full((5,), 2.0)
    still.grad = torch.zeros(5)
    lamb.param_groups[0]["eps"] = 1e-6
    lamb.step()
    torch.testing.assert_close(zero.detach(), torch.full((5,), -0.1))
    assert torch.equal(still.detach(), torch.ones(5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_shows(backend: BackendName) -> None:
    parameter = torch.nn.Parameter(torch.ones(100))
    lamb = Lamb([parameter], backend=backend)
    parameter.grad = torch.ones(100)
    parameter.grad[3] = math.nan
    lamb.step()
    assert parameter.isnan().all()


def test_threads_and_blocks_change_nothing() -> None:
    """Several blocks in each parameter, several threads: the same numbers."""
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            parameter = torch.nn.Parameter(torch.randn(300_001, generator=_seed(1)))
            lamb = Lamb([parameter], backend="numba")
            for step in range(3):
                parameter.grad = torch.randn(300_001, generator=_seed(step))
                lamb.step()
            results.append(parameter.detach())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def _seed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=fewer(30))
@given(
    shapes=st.lists(
        st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5
    ),
    without=st.sets(st.integers(0, 4)),
    decay=st.sampled_from([0.0, 0.1]),
)
def test_backends_agree(shapes: list[tuple[int, ...]], without: set[int], decay: float) -> None:
    """Any shapes, some parameters without gradient, counts that differ between parameters."""
    results: list[list[Tensor]] = []
    for backend in BACKENDS:
        generator = _seed(7)
        parameters = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        lamb = Lamb(parameters, weight_decay=decay, backend=backend)
        for step in range(3):
            for index, parameter in enumerate(parameters):
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = None if step == 0 and index in without else gradient
            lamb.step()
        for index, parameter in enumerate(parameters):
            assert lamb.state[parameter]["step"] == (2 if index in without else 3)
        results.append([p.detach() for p in parameters])
    for first, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(first, other, rtol=1e-6, atol=1e-6)


def test_state_dict_goes_on() -> None:
    whole = torch.nn.Parameter(start()["a"])
    lamb = Lamb([whole])
    resumed, other = whole, lamb
    for step in range(6):
        if step == 3:
            resumed = torch.nn.Parameter(whole.detach().clone())
            other = Lamb([resumed])
            other.load_state_dict(copy.deepcopy(lamb.state_dict()))
        whole.grad = gradients(step, {"a": whole.detach()})["a"]
        lamb.step()
        if step >= 3:
            resumed.grad = gradients(step, {"a": resumed.detach()})["a"]
            other.step()
    assert torch.equal(whole, resumed)


def test_wrapped_by_hand() -> None:
    """What DeepSpeed's wrappers do to the groups, without DeepSpeed."""
    parameters = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))]
    lamb = Lamb(parameters)
    masters = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    lamb.param_groups[0]["params"] = masters
    for master in masters:
        master.grad = torch.zeros_like(master)
    lamb.step()  # the step of a constructor: no decay, no count
    assert all((master == 1.0).all() for master in masters)
    assert not lamb.state
    for master in masters:
        master.grad = torch.ones_like(master)
    lamb.step()  # a master for each parameter: exact without bind
    assert not (masters[0] == 1.0).any()

    flat = Lamb(parameters)
    master = torch.nn.Parameter(torch.ones(10))
    flat.param_groups[0]["params"] = [master]
    master.grad = torch.zeros(10)
    flat.step()
    assert (master == 1.0).all()
    master.grad = torch.ones(10)
    with pytest.raises(EnvironmentProblem, match="bind"):
        flat.step()
    assert (master == 1.0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_of_zero(backend: BackendName) -> None:
    """Each parameter has a full tile and one that isn't, whose padding must not become 0 / 0."""
    parameter = torch.nn.Parameter(torch.ones(3_000))
    lamb = Lamb([parameter], lr=0.1, weight_decay=0.0, eps=0.0, backend=backend)
    parameter.grad = torch.full((3_000,), -2.0)
    lamb.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3_000,), 1.1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_another_type(backend: BackendName) -> None:
    """fp32 parameters may have bf16 gradients (`grad_dtype`)."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = torch.nn.Parameter(torch.ones(1_001))
        parameter.grad_dtype = dtype
        parameter.grad = torch.full((1_001,), 0.5, dtype=dtype)
        Lamb([parameter], backend=backend).step()
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_moments_of_another_layout() -> None:
    """A state dict brings the strides of the parameters that it was made with."""
    gradient = torch.randn(5, 7, generator=_seed(0))
    column_major = torch.nn.Parameter(torch.ones(7, 5).t())
    row_major = torch.nn.Parameter(torch.ones(5, 7))
    lamb, other = Lamb([column_major], lr=0.1), Lamb([row_major], lr=0.1)
    column_major.grad = row_major.grad = gradient
    lamb.step()
    row_major.data.copy_(column_major.detach())
    other.load_state_dict(copy.deepcopy(lamb.state_dict()))
    assert not other.state[row_major]["exp_avg"].is_contiguous()
    lamb.step()
    other.step()
    torch.testing.assert_close(row_major, column_major)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    elsewhere = [torch.nn.Parameter(torch.ones(3, device=d)) for d in ("cpu", "meta")]
    for parameter in elsewhere:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(EnvironmentProblem, match="on cpu and on meta in one group"):
        Lamb(elsewhere).step()
    half = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    half.grad = torch.ones_like(half)
    with pytest.raises(EnvironmentProblem, match="bfloat16"):
        Lamb([half]).step()
    whole = torch.nn.Parameter(torch.ones(3))
    whole.grad = torch.ones(3)
    with pytest.raises(EnvironmentProblem, match="triton"):
        Lamb([whole], backend="triton").step()
    with pytest.raises(ValueError, match="betas"):
        Lamb([whole], betas=(1.0, 0.9))
    with pytest.raises(ValueError, match="lr"):
        Lamb([whole], lr=-1.0)
    for wrong in (
        {"min_trust_ratio": 2.0, "max_trust_ratio": 1.0},
        {"decay": "outside"},
        {"max_grad_norm": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LambOptions(**wrong)  # type: ignore[arg-type]


def test_non_contiguous_and_double_parameters_go_through_torch() -> None:
    for parameter in (
        torch.nn.Parameter(torch.randn(4, 6).t()),
        torch.nn.Parameter(torch.randn(5, dtype=torch.float64)),
    ):
        before = parameter.detach().clone()
        lamb = Lamb([parameter], lr=0.01)
        parameter.grad = torch.ones_like(parameter)
        lamb.step()
        zeros = torch.zeros_like(before)
        expected = lamb_step(
            before,
            torch.ones_like(before),
            zeros,
            zeros,
            1,
            lr=0.01,
            betas=(0.9, 0.999),
            eps=1e-6,
            weight_decay=0.01,
            options=LambOptions(),
        )
        torch.testing.assert_close(parameter.detach(), expected.weight)


def test_norms_of_large_tensors() -> None:
    """2.4 M normal elements: torch's fp32 norm on a CPU is off by some 1e-5."""
    tensor = torch.randn(2_400_000, generator=_seed(0))
    exact = tensor.double().square().sum()
    assert abs(squared_norms([tensor])[0] / exact - 1).item() < 1e-6
