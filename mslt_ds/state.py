"""The training state: all that the next step is computed from, besides the recipe and the data.

A state is keyed by parameter name and holds whole fp32 tensors on the CPU. It therefore depends neither
on the number of ranks nor on the ZeRO stage, and a stage boundary, a checkpoint and a resume all
pass on the same thing.

Rank 0 holds the state of the whole run. The other ranks hold tensors only while an engine is made
from them (`distributed.sharing`); a state without tensors stands for "rank 0 has it".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Weights = dict[str, Tensor]
"""A model's weights of record: Hugging Face names, fp32 on the CPU, without tied aliases."""

OptimizerState = dict[str, dict[str, Any]]
"""Parameter name -> {"exp_avg": Tensor, "exp_avg_sq": Tensor, "step": int}."""

MOMENTS = ("exp_avg", "exp_avg_sq")

LossScaleField = Literal["cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"]
"""What the dynamic loss scale goes on from, in DeepSpeed's names."""


@dataclass(frozen=True)
class TrainingState:
    """Weights, optimizer state and loss scale after `step` steps."""

    step: int
    """Steps done, which is also the number of the next step, counted from 0."""
    weights: Weights = field(default_factory=dict)
    optimizer_state: OptimizerState = field(default_factory=dict)
    """Of every parameter that has trained, also of those that are frozen now: they train again
    in the joint stage."""
    loss_scale: dict[LossScaleField, int | float] = field(default_factory=dict)
    """The dynamic loss scale; empty outside fp16."""
    passed_over: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Sequence length -> ranges of its instances (first, one after the last) that the run leaves
    out, because its numbers stopped being finite there."""

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments, under unique names."""
        return self.weights | moments(self.optimizer_state)

    def without(self, names: Collection[str]) -> TrainingState:
        """The state of all parameters but `names`."""
        return TrainingState(
            self.step,
            {name: tensor for name, tensor in self.weights.items() if name not in names},
            {name: entry for name, entry in self.optimizer_state.items() if name not in names},
            self.loss_scale,
            self.passed_over,
        )

    def is_finite(self) -> bool:
        """Whether no weight and no moment is infinite or NaN."""
        # One pass without a copy: minimum and maximum are NaN where any number is.
        return all(
            bool(torch.stack(tensor.aminmax()).isfinite().all())
            for tensor in self.tensors().values()
        )


def moments(state: OptimizerState) -> dict[str, Tensor]:
    """The moments by `exp_avg/<name>` and `exp_avg_sq/<name>`."""
    return {f"{kind}/{name}": entry[kind] for name, entry in state.items() for kind in MOMENTS}


def step_counts(state: OptimizerState) -> dict[str, int]:
    """Parameter name -> optimizer steps that its moments have seen."""
    return {name: entry["step"] for name, entry in state.items()}


def optimizer_state(tensors: Mapping[str, Tensor], steps: Mapping[str, int]) -> OptimizerState:
    """The state whose `moments` and `step_counts` are `tensors` and `steps`."""
    return {
        name: {kind: tensors[f"{kind}/{name}"] for kind in MOMENTS} | {"step": count}
        for name, count in steps.items()
    }
