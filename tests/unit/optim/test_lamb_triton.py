"""The Triton kernels: on a GPU as they run, elsewhere in Triton's interpreter where it is installed."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from mslt_ds.optim import Lamb, LambOptions, backends, lamb_triton  # noqa: E402

SHAPES = [(70, 111), (1,), (5_000,), (3, 5), ()]
DEVICE = "cuda" if HAS_GPU else "cpu"
# So that `make bench-gpu` runs all of them, and `make test` those that need no GPU.
pytestmark = [pytest.mark.gpu] if HAS_GPU else []


def trained(backend: Any, options: LambOptions, lr: Any = 0.01) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE)) for shape in SHAPES
    ]
    lamb = Lamb(parameters, lr=lr, options=options, backend=backend)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(DEVICE)
        lamb.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(
    "options",
    [
        LambOptions(),
        LambOptions(adapt="all", decay="gradient", bias_correction=False),
        LambOptions(gradient_normalization="unit", max_trust_ratio=0.3),
    ],
)
def test_equals_torch(options: LambOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in a parameter, a block that isn't full, a parameter of one element."""
    monkeypatch.setattr(lamb_triton, "BLOCK", 1 << 12)
    expected = trained("torch", options)
    if not HAS_GPU:  # `choose` rightly says that Triton is for GPUs
        monkeypatch.setattr(backends, "choose", lambda name, tensors: name)
    for left, right in zip(trained("triton", options), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
def test_captured_in_a_graph() -> None:
    """Replays of one captured step equal steps made one by one."""
    results = []
    for capture in (False, True):
        parameter = torch.nn.Parameter(torch.arange(1.0, 5_001.0, device="cuda") / 5_000)
        parameter.grad = torch.sin(parameter.detach() * 7)
        lamb = Lamb([parameter], lr=0.01, backend="triton")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):  # makes the state, sends the table, compiles
                lamb.step()
        torch.cuda.current_stream().wait_stream(stream)
        if capture:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                lamb.step()
            for _ in range(5):
                graph.replay()
        else:
            for _ in range(5):
                lamb.step()
        results.append(parameter.detach().clone())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
def test_equals_deepspeeds_fused_lamb() -> None:
    """DeepSpeed's kernel with its clamp; its bias correction is another one, so without."""
    options = LambOptions(
        adapt="all", bias_correction=False, min_trust_ratio=0.01, max_trust_ratio=10.0
    )
    results = []
    for backend in ("triton", "deepspeed"):
        generator = torch.Generator().manual_seed(0)
        parameters = [
            torch.nn.Parameter(torch.randn(shape, generator=generator).cuda())
            for shape in SHAPES[:-1]
        ]
        lamb = backends.build_lamb(
            [{"params": parameters, "weight_decay": 0.01}],
            lr=0.01,
            betas=(0.9, 0.999),
            eps=1e-6,
            options=options,
            backend=backend,
        )
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).cuda()
            lamb.step()
        results.append([parameter.detach() for parameter in parameters])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
