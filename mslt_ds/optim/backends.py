"""Builds the optimizer that the recipe's `optimizer.lamb.backend` names.

`auto`, `triton`, `numba` and `torch` build `Lamb`, which chooses its passes by them (`passes.py`).
`deepspeed` and `apex` build the FusedLamb of DeepSpeed or the FusedLAMB of NVIDIA's apex. These don't
know ZeRO's partitions, so they are accepted at ZeRO 0 only, and only with options that they have.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mslt_ds.errors import EnvironmentProblem, RecipeError
from mslt_ds.optim.lamb import Lamb
from mslt_ds.optim.lamb_reference import LambOptions

FOREIGN = ("deepspeed", "apex")


def build_lamb(
    groups: Sequence[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    options: LambOptions,
    backend: Any = "auto",
    zero_stage: int = 0,
) -> torch.optim.Optimizer:
    """The LAMB optimizer of `backend`. Each group has its own `weight_decay`.

    Raises RecipeError if the backend lacks what the recipe asks for, EnvironmentProblem if it can't
    run here.
    """
    if backend not in FOREIGN:
        return Lamb(groups, lr=lr, betas=betas, eps=eps, options=options, backend=backend)
    if zero_stage != 0:
        raise RecipeError(
            f"optimizer.lamb.backend: {backend} takes ZeRO {zero_stage}'s flat partitions for "
            "parameters, one trust ratio for all of them; choose auto, or ZeRO stage 0"
        )
    if backend == "deepspeed":
        return _deepspeed(groups, lr=lr, betas=betas, eps=eps, options=options)
    return _apex(groups, lr=lr, betas=betas, eps=eps, options=options)


def _deepspeed(groups: Sequence[dict[str, Any]], options: LambOptions, **settings: Any) -> Any:
    _require(
        "deepspeed",
        {
            "adapt": (options.adapt, "all"),
            "decay": (options.decay, "update"),
            "gradient_normalization": (options.gradient_normalization, "none"),
            # DeepSpeed corrects the bias after the trust ratio is taken, `Lamb` before.
            "bias_correction": (options.bias_correction, False),
        },
    )
    if not torch.cuda.is_available():
        raise EnvironmentProblem(
            "optimizer.lamb.backend: deepspeed's FusedLamb is a CUDA kernel and there is no "
            "GPU here; choose auto"
        )
    from deepspeed.ops.lamb import FusedLamb

    try:
        return FusedLamb(
            list(groups),
            bias_correction=False,
            min_coeff=options.min_trust_ratio,
            max_coeff=options.max_trust_ratio,
            **settings,
        )
    except Exception as error:  # a missing compiler raises errors of many types
        raise EnvironmentProblem(
            f"optimizer.lamb.backend: deepspeed can't build its FusedLamb here ({error}); "
            "it needs nvcc of torch's CUDA version; choose auto"
        ) from error


def _apex(groups: Sequence[dict[str, Any]], options: LambOptions, **settings: Any) -> Any:
    _require(
        "apex",
        {
            "min_trust_ratio": (options.min_trust_ratio, 0.0),
            "max_trust_ratio": (options.max_trust_ratio, math.inf),
        },
    )
    if options.gradient_normalization == "unit":
        _require("apex", {"gradient_normalization": ("unit", "none or clip")})
    problem = apex_problem()
    if problem:
        remedy = "build" if problem == "not installed" else "uninstall it and build"
        raise EnvironmentProblem(
            f"optimizer.lamb.backend: apex is {problem}; {remedy} "
            "https://github.com/NVIDIA/apex with its CUDA extensions, or choose auto"
        )
    if not torch.cuda.is_available():
        raise EnvironmentProblem(
            "optimizer.lamb.backend: apex's FusedLAMB is a CUDA kernel and there is no GPU here; "
            "choose auto"
        )
    try:
        from apex.optimizers import FusedLAMB  # pyright: ignore[reportMissingImports]

        return FusedLAMB(
            list(groups),
            bias_correction=options.bias_correction,
            adam_w_mode=options.decay == "update",
            use_nvlamb=options.adapt == "all",
            max_grad_norm=(
                options.max_grad_norm if options.gradient_normalization == "clip" else 0.0
            ),
            **settings,
        )
    except (ImportError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"optimizer.lamb.backend: apex lacks its CUDA extensions ({error}); build it with "
            "them, or choose auto"
        ) from error


def available() -> dict[str, str]:
    """Backend name -> `usable`, or the reason why it isn't usable here. Compiles nothing."""
    gpu = torch.cuda.is_available()
    found = {"torch": "usable"}
    for name, device in (("numba", "cpu"), ("triton", "cuda")):
        if not importlib.util.find_spec(name):
            found[name] = "not installed"
        else:
            found[name] = "usable" if device == "cpu" or gpu else "there is no GPU"
    if not gpu:
        found["deepspeed"] = "there is no GPU"
    else:
        from deepspeed.ops.op_builder.fused_lamb import FusedLambBuilder

        built = FusedLambBuilder().is_compatible(verbose=False)
        found["deepspeed"] = "usable" if built else "its FusedLamb can't be built here"
    problem = apex_problem()
    if problem:
        found["apex"] = problem
    elif not importlib.util.find_spec("amp_C"):
        found["apex"] = "NVIDIA's, but without its CUDA extensions"
    else:
        found["apex"] = "usable" if gpu else "there is no GPU"
    return found


def apex_problem() -> str:
    """What is wrong with the installed package apex; empty if it is NVIDIA's."""
    found = importlib.util.find_spec("apex")
    if found is None:
        return "not installed"
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    if not any((folder / "optimizers" / "fused_lamb.py").exists() for folder in folders):
        return "not NVIDIA's (PyPI's apex is a web toolkit of that name)"
    return ""


def _require(backend: str, needed: dict[str, tuple[Any, Any]]) -> None:
    for field, (value, only) in needed.items():
        if value != only:
            raise RecipeError(
                f"optimizer.lamb.{field}: {value}, but backend {backend} can only do {only}"
            )
