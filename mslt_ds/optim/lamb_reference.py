"""LAMB's mathematics in plain torch: the reference that every faster implementation must equal.

You et al. 2019, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
algorithm 2, with phi(z) = z. Implementations differ in five places; each is an option here. The
defaults are the paper's, with a trust ratio of 1 for parameters without weight decay, as in the
code that trained BERT with it. docs/lamb.md compares the implementations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class LambOptions:
    """The choices in which implementations of LAMB differ."""

    bias_correction: bool = True
    """Divide the moments by 1 - beta ** step, as Adam does."""

    decay: Literal["update", "gradient"] = "update"
    """Add weight decay to the update, inside the trust ratio (the paper), or to the gradient (L2)."""

    adapt: Literal["decayed", "all"] = "decayed"
    """Trust ratio for groups with weight decay only (1 for biases and LayerNorm), or for all."""

    min_trust_ratio: float = 0.0
    max_trust_ratio: float = math.inf
    """Clamp of the trust ratio. A ratio that isn't defined (a norm of 0) is 1 in any case."""

    gradient_normalization: Literal["none", "clip", "unit"] = "none"
    """Use the global gradient unchanged, scaled down to `max_grad_norm`, or divided by its norm."""

    max_grad_norm: float = 1.0
    """For "clip" only. DeepSpeed's own `gradient_clipping` is applied before and does the same."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_trust_ratio <= self.max_trust_ratio:
            raise ValueError(
                f"min_trust_ratio {self.min_trust_ratio} and max_trust_ratio "
                f"{self.max_trust_ratio}: need 0 <= min <= max"
            )
        for field, allowed in (
            ("decay", ("update", "gradient")),
            ("adapt", ("decayed", "all")),
            ("gradient_normalization", ("none", "clip", "unit")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} {getattr(self, field)!r}: choose {' or '.join(allowed)}")
        if not self.max_grad_norm > 0.0:
            raise ValueError(f"max_grad_norm {self.max_grad_norm}: must be positive")


class LambResult(NamedTuple):
    """One parameter after a step."""

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    trust_ratio: Tensor
    """()"""


def gradient_scale(total_norm: Tensor, options: LambOptions) -> Tensor:
    """() factor on every gradient, from the () norm of all gradients together."""
    if options.gradient_normalization == "unit":
        return torch.where(total_norm > 0, 1.0 / total_norm, torch.ones_like(total_norm))
    if options.gradient_normalization == "clip":
        return torch.clamp(options.max_grad_norm / (total_norm + 1e-6), max=1.0)
    return torch.ones_like(total_norm)


def bias_corrections(
    steps: Tensor, betas: tuple[float, float], options: LambOptions
) -> tuple[Tensor, Tensor]:
    """(n,) step counts, this one included -> (n,) factors on exp_avg and on sqrt(exp_avg_sq).

    In float64: in fp32, 1 - 0.999 loses four digits.
    """
    if not options.bias_correction:
        ones = torch.ones_like(steps, dtype=torch.float64)
        return ones, ones
    beta1, beta2 = (torch.pow(beta, steps.double()) for beta in betas)
    return 1.0 / (1.0 - beta1), torch.rsqrt(1.0 - beta2)


def trust_ratios(
    weight_squares: Tensor, update_squares: Tensor, options: LambOptions, *, adapt: bool
) -> Tensor:
    """(n,) squared norms of weights and updates -> (n,) trust ratios."""
    ones = torch.ones_like(weight_squares)
    if not adapt:
        return ones
    ratios = torch.sqrt(weight_squares / update_squares)
    ratios = ratios.clamp(options.min_trust_ratio, options.max_trust_ratio)
    # Only an exact zero is undefined: a NaN must propagate.
    return torch.where((weight_squares == 0) | (update_squares == 0), ones, ratios)


def adapts(weight_decay: float, options: LambOptions) -> bool:
    """Whether parameters with this weight decay get a trust ratio of their own."""
    return options.adapt == "all" or weight_decay != 0.0


def lamb_step(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    options: LambOptions,
) -> LambResult:
    """One step of one whole parameter; nothing is changed in place.

    step: this parameter's count, this step included (1 for its first)
    gradient: already scaled by `gradient_scale`
    """
    beta1, beta2 = betas
    if options.decay == "gradient":
        gradient = gradient + weight_decay * weight
    exp_avg = beta1 * exp_avg + (1.0 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1.0 - beta2) * gradient**2
    first, second = (f.item() for f in bias_corrections(torch.tensor(step), betas, options))
    update = exp_avg * first / (exp_avg_sq.sqrt() * second + eps)
    if options.decay == "update":
        update = update + weight_decay * weight
    ratio = trust_ratios(
        weight.double().square().sum(),
        update.double().square().sum(),
        options,
        adapt=adapts(weight_decay, options),
    )
    return LambResult(weight - lr * ratio.item() * update, exp_avg, exp_avg_sq, ratio)


def lamb_reference_step(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: Mapping[str, tuple[Tensor, Tensor, int]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: Mapping[str, float],
    options: LambOptions,
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor, int]], dict[str, float]]:
    """One step of a whole model, by name: (weights, state, trust ratios) after it.

    state: name -> (exp_avg, exp_avg_sq, steps made); a parameter without state is absent
    """
    squares = [gradient.double().square().sum() for gradient in gradients.values()]
    scale = gradient_scale(torch.stack(squares).sum().sqrt(), options).item()
    new_weights, new_state, ratios = dict(weights), dict(state), {}
    for name, gradient in gradients.items():
        zeros = torch.zeros_like(weights[name])
        exp_avg, exp_avg_sq, step = state.get(name, (zeros, zeros, 0))
        result = lamb_step(
            weights[name],
            gradient * scale,
            exp_avg,
            exp_avg_sq,
            step + 1,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay[name],
            options=options,
        )
        new_weights[name] = result.weight
        new_state[name] = (result.exp_avg, result.exp_avg_sq, step + 1)
        ratios[name] = result.trust_ratio.item()
    return new_weights, new_state, ratios
