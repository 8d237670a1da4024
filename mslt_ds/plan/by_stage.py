"""`plan.global_batch_size` and `plan.masked_lm_prob`: a list or a ramp, spread over a plan's stages."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from mslt_ds.config.sections import Ramp, RunConfig
from mslt_ds.plan.stages import Draft


def with_values_by_stage(
    drafts: list[Draft], config: RunConfig, problems: list[str]
) -> list[Draft]:
    """The drafts with the values of `plan.global_batch_size` and `plan.masked_lm_prob`."""
    plan, num_stages = config.plan, len(drafts)
    if found := _problems(config, num_stages):
        problems += found
        return drafts
    if plan.global_batch_size is not None:
        sizes = batch_sizes(plan.global_batch_size, num_stages)
        drafts = [
            replace(draft, global_batch_size=size, global_batch_size_key="plan.global_batch_size")
            for draft, size in zip(drafts, sizes, strict=True)
        ]
    if plan.masked_lm_prob is not None:
        probs = masked_lm_probs(plan.masked_lm_prob, num_stages)
        drafts = [
            replace(draft, masked_lm_prob=prob) for draft, prob in zip(drafts, probs, strict=True)
        ]
    return drafts


def _problems(config: RunConfig, num_stages: int) -> list[str]:
    """Why the recipe's values don't fit the `num_stages` stages that its method makes."""
    return [
        *_misfit(config, "global_batch_size", "train", num_stages),
        *_misfit(config, "masked_lm_prob", "data", num_stages),
    ]


def _misfit(config: RunConfig, key: str, default: str, num_stages: int) -> list[str]:
    given: list[Any] | Ramp[Any] | None = getattr(config.plan, key)
    if given is None:
        return []
    if isinstance(given, list):
        fits = len(given) == num_stages
        found = "1 value" if len(given) == 1 else f"{len(given)} values"
    else:
        fits = num_stages > 1
        found = f"a ramp from {given.first} to {given.last}"
    if fits:
        return []
    plan = config.plan
    made = "1 stage" if num_stages == 1 else f"{num_stages} stages"
    if plan.method == "mslt" and num_stages != plan.num_stages:
        made += " with the joint stage"
    wanted = "a list of 1 value" if num_stages == 1 else f"a list of {num_stages} values or a ramp"
    value = getattr(getattr(config, default), key)
    return [
        f"plan.{key}: {found}, but plan.method {plan.method} makes {made}; give {wanted}, or "
        f"null for {default}.{key} {value} in every stage"
    ]


def batch_sizes(given: list[int] | Ramp[int], num_stages: int) -> list[int]:
    """The global batch size of each stage, in instances.

    The sizes of a ramp are rounded, halves upwards, to multiples of the greatest common divisor of
    its ends. Micro-batches and ranks that divide both ends therefore divide every size between them.
    """
    if isinstance(given, list):
        return given
    unit, changes = math.gcd(given.first, given.last), num_stages - 1
    exact = [given.first * (changes - i) + given.last * i for i in range(num_stages)]  # x changes
    return [(2 * size + changes * unit) // (2 * changes * unit) * unit for size in exact]


def masked_lm_probs(given: list[float] | Ramp[float], num_stages: int) -> list[float]:
    """The share of tokens to predict in each stage; those of a ramp are rounded to 12 decimals."""
    if isinstance(given, list):
        return given
    change = (given.last - given.first) / (num_stages - 1)
    return [round(given.first + change * i, 12) for i in range(num_stages)]
