"""Which backend is taken, and what the others' absence says."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mslt_ds.errors import EnvironmentProblem, RecipeError
from mslt_ds.optim import Lamb, LambOptions
from mslt_ds.optim.backends import build_lamb
from mslt_ds.optim.passes import choose

NOT_HERE = pytest.mark.skipif(torch.cuda.is_available(), reason="says what lacks without a GPU")
FITS_DEEPSPEED = LambOptions(bias_correction=False, adapt="all", max_trust_ratio=10.0)


def build(**changes: Any) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "options": LambOptions(),
        **changes,
    }
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))], "weight_decay": 0.01}]
    return build_lamb(groups, **settings)


def test_auto_takes_the_compiled_path_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    whole = torch.ones(4, 4)
    assert choose("auto", [whole]) == "numba"
    assert choose("auto", [whole, whole.double()]) == "torch"
    assert choose("auto", [whole[:, 1]]) == "torch"
    with pytest.raises(EnvironmentProblem, match="contiguous fp32"):
        choose("numba", [whole.double()])
    with pytest.raises(EnvironmentProblem, match="can't run on cpu"):
        choose("triton", [whole])
    with pytest.raises(EnvironmentProblem, match="choose auto, torch, numba"):
        choose("cuda", [whole])


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton")
def test_triton_on_a_cpu_is_for_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.ones(4, 4)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton", [whole]) == "triton"
    assert choose("auto", [whole]) == "numba"
    with pytest.raises(EnvironmentProblem, match="contiguous fp32"):
        choose("triton", [whole.double()])


def test_our_own() -> None:
    optimizer = build(backend="torch", options=LambOptions(adapt="all"), zero_stage=2)
    assert isinstance(optimizer, Lamb)
    assert optimizer.options.adapt == "all"
    assert optimizer.backend_name == "torch"


@pytest.mark.parametrize("backend", ["deepspeed", "apex"])
def test_foreign_ones_are_refused_under_zero(backend: str) -> None:
    with pytest.raises(RecipeError, match=f"backend: {backend} takes ZeRO 1's flat partitions"):
        build(backend=backend, options=FITS_DEEPSPEED, zero_stage=1)


@pytest.mark.parametrize(
    ("backend", "options", "field"),
    [
        ("deepspeed", LambOptions(bias_correction=False), "adapt"),
        ("deepspeed", LambOptions(adapt="all"), "bias_correction"),
        ("deepspeed", LambOptions(adapt="all", decay="gradient"), "decay"),
        ("apex", LambOptions(max_trust_ratio=10.0), "max_trust_ratio"),
        ("apex", LambOptions(gradient_normalization="unit"), "gradient_normalization"),
    ],
)
def test_options_that_they_lack(backend: str, options: LambOptions, field: str) -> None:
    with pytest.raises(RecipeError, match=rf"optimizer\.lamb\.{field}"):
        build(backend=backend, options=options)


@NOT_HERE
def test_deepspeed_needs_a_gpu() -> None:
    with pytest.raises(EnvironmentProblem, match="no GPU"):
        build(backend="deepspeed", options=FITS_DEEPSPEED)


def test_apex_is_not_installed() -> None:
    with pytest.raises(EnvironmentProblem, match="apex is not installed"):
        build(backend="apex")


def test_apex_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI's package apex has nothing to do with NVIDIA's, and importing it would even fail."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentProblem, match="not NVIDIA's"):
        build(backend="apex")


@NOT_HERE
def test_nvidia_apex_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apex" / "optimizers").mkdir(parents=True)
    (tmp_path / "apex" / "__init__.py").write_text("")
    (tmp_path / "apex" / "optimizers" / "fused_lamb.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentProblem, match="no GPU"):
        build(backend="apex", options=LambOptions(max_trust_ratio=math.inf))
