"""The Triton kernels: in Triton's interpreter, through its compiler, and on a GPU where there is one.

The interpreter shows that the numbers are right, the compiler that the GPUs' code can be made and
that it moves 16 bytes at a time. Neither needs a GPU.
"""

# Triton is for Linux only.
# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.optim import Lamb, LambOptions
from mslt_ds.optim.backends import build_lamb

HERE = Path(__file__).parent
TRITON = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton")
HAS_GPU = torch.cuda.is_available()
NEEDS_GPU = pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")

POINTERS = {"table": "*i64", "first_factors": "*fp32", "second_factors": "*fp32",
            "gradient_scale": "*fp32", "squares": "*fp32", "rates": "*fp32"}  # fmt: skip
CONSTANTS = ("TILE", "VECTOR")


@TRITON
@pytest.mark.slow
@pytest.mark.parametrize("file", ["test_lamb.py", "test_pieces.py"])
def test_in_the_interpreter(file: str) -> None:
    """What every backend has to pass, all options, shapes and partitions, with the kernels too.

    In a process of its own: Triton decides when it is imported how kernels run.
    """
    command = [sys.executable, "-m", "pytest", "-k", "triton or agree", str(HERE / file)]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def compiled(kernel: Any, architecture: int, vector: int) -> Any:
    """What Triton's compiler makes of a kernel for an architecture (70 for sm_70)."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mslt_ds.optim import lamb_triton

    signature = {
        name: "constexpr" if name in CONSTANTS else POINTERS.get(name, "fp32")
        for name in kernel.arg_names
    }
    constants = {"TILE": lamb_triton.TILE, "VECTOR": vector}
    source = ASTSource(kernel, signature, constants)
    return compile_kernel(source, target=GPUTarget("cuda", architecture, 32))


@TRITON
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles nothing then")
@pytest.mark.parametrize("architecture", [70, 80, 90])
def test_compiled_for(architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for V100, A100 and H100: each load and store of a stream moves `vector` elements."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from mslt_ds.optim import lamb_triton

    tiles = lamb_triton.TILE // 128  # elements of a tile for each of 4 warps' threads
    for kernel, loads, stores in ((lamb_triton._moments, 4, 2), (lamb_triton._apply, 3, 1)):
        for vector in (4, 1):
            made = compiled(kernel, architecture, vector)
            assert made.asm["cubin"]
            suffix = rf"\.v{vector}\.b32" if vector > 1 else r"\.b32"
            found = [
                len(re.findall(rf"\b{word}\.global{suffix}", made.asm["ptx"]))
                for word in ("ld", "st")
            ]
            # First and second factor, rate or gradient scale; two sums.
            others = [3, 2 if stores == 2 else 0] if vector == 1 else [0, 0]
            expected = [loads * tiles // vector + others[0], stores * tiles // vector + others[1]]
            assert found == expected, (kernel.__name__, vector)


@TRITON
def test_elements_of_an_instruction() -> None:
    """No more than all alignments and lengths allow."""
    from mslt_ds.optim.lamb_triton import _vector

    row = [64, 128, 256, 512, 16, 0]
    assert _vector(np.array([row])) == 4
    assert _vector(np.array([row, [64, 128, 256, 512, 6, 1]])) == 2
    for column, value, expected in ((0, 72, 2), (1, 68, 1), (2, 72, 2), (3, 12, 1), (4, 7, 1)):
        other = [*row[:column], value, *row[column + 1 :]]
        assert _vector(np.array([row, other])) == expected
    assert _vector(np.empty((0, 6), dtype=np.int64)) == 4


SHAPES = [(70, 111), (1,), (70_000,), (3, 5), ()]


def on_gpu(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).cuda()) for s in shapes]


def steps(lamb: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).cuda()
        lamb.step()


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize(
    "options",
    [
        LambOptions(),
        LambOptions(adapt="all", decay="gradient", bias_correction=False),
        LambOptions(gradient_normalization="unit", max_trust_ratio=0.3),
    ],
)
@pytest.mark.parametrize("shapes", [SHAPES, [(64, 128), (4096,), (48,)]], ids=["odd", "even"])
def test_equals_torch(options: LambOptions, shapes: list[tuple[int, ...]]) -> None:
    """Several blocks in a parameter, a block that isn't full, loads of 4 and of 16 bytes."""
    results = []
    for backend in ("triton", "torch"):
        parameters = on_gpu(shapes)
        steps(Lamb(parameters, lr=0.01, options=options, backend=backend), parameters, 3)
        results.append([parameter.detach() for parameter in parameters])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


def warmed_up(parameter: torch.nn.Parameter, lr: Any = 0.01) -> Lamb:
    """Three steps on a stream beside: they make the state, send the table, compile."""
    lamb = Lamb([parameter], lr=lr, backend="triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            lamb.step()
    torch.cuda.current_stream().wait_stream(stream)
    return lamb


def ramp() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.arange(1.0, 5_001.0, device="cuda") / 5_000)
    parameter.grad = torch.sin(parameter.detach() * 7)
    return parameter


@pytest.mark.gpu
@NEEDS_GPU
def test_captured_in_a_graph() -> None:
    """Replays of one captured step equal steps made one by one, and follow a rate in a tensor.

    They go on where they were captured although a step in between has another gradient.
    """
    results = []
    for capture in (False, True):
        parameter, rate = ramp(), torch.tensor(0.01, device="cuda")
        first = parameter.grad
        lamb = warmed_up(parameter, rate)
        step = lamb.step
        if capture:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                lamb.step()
            step = graph.replay
        for _ in range(5):
            step()
        rate.mul_(0.5)
        step()
        parameter.grad = torch.cos(parameter.detach() * 5)
        lamb.step()
        parameter.grad = first
        step()
        results.append(parameter.detach().clone())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@NEEDS_GPU
def test_a_capture_needs_gradients_that_stay() -> None:
    parameter = ramp()
    lamb = warmed_up(parameter)
    kept, parameter.grad = parameter.grad, torch.cos(parameter.detach())
    assert kept is not None
    with (
        pytest.raises(EnvironmentProblem, match="set_to_none"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        lamb.step()


@pytest.mark.gpu
@NEEDS_GPU
def test_a_count_loaded_on_the_cpu_goes_to_the_gpu() -> None:
    """A checkpoint that was read with map_location="cpu", into parameters of which one is new."""
    parameters = on_gpu([(7,), (5,)])
    lamb = Lamb(parameters)
    steps(lamb, parameters[:1], 2)
    saved = lamb.state_dict()
    saved["state"][0]["step"] = saved["state"][0]["step"].cpu()
    other = Lamb(parameters)
    other.load_state_dict(saved)
    steps(other, parameters, 1)
    assert [other.state[p]["step"].item() for p in parameters] == [3.0, 1.0]
    assert all(other.state[p]["step"].is_cuda for p in parameters)


@pytest.mark.gpu
@NEEDS_GPU
def test_equals_deepspeeds_fused_lamb() -> None:
    """DeepSpeed's kernel with its clamp; its bias correction is another one, so without."""
    options = LambOptions(
        adapt="all", bias_correction=False, min_trust_ratio=0.01, max_trust_ratio=10.0
    )
    results = []
    for backend in ("triton", "deepspeed"):
        parameters = on_gpu(SHAPES[:-1])
        lamb = build_lamb(
            [{"params": parameters, "weight_decay": 0.01}],
            lr=0.01,
            betas=(0.9, 0.999),
            eps=1e-6,
            options=options,
            backend=backend,
        )
        steps(lamb, parameters, 5)
        results.append([parameter.detach() for parameter in parameters])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
