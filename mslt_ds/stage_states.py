"""The states that stages begin with: fresh weights, those of a model that exists, and grown ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PretrainedConfig

from mslt_ds.config.sections import RunConfig
from mslt_ds.disk import pretrained
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.growth import grow, grow_optimizer_state
from mslt_ds.model.initial import fresh_parameter, fresh_weights
from mslt_ds.plan.stages import Plan, Stage
from mslt_ds.state import TrainingState


@dataclass(frozen=True)
class StageStates:
    """Makes the states that the stages of a run begin with."""

    config: RunConfig
    plan: Plan
    hf_config: Callable[[int], PretrainedConfig]
    """Depth -> the configuration of the recipe's model at that depth."""
    tokenizer_dir: Path
    """The tokenizer of the token store."""
    init_from: Path | None
    """The folder of `plan.init_from`, where it has been looked for."""

    def first(self) -> TrainingState:
        """Fresh weights, or those of `plan.init_from` with its missing heads fresh."""
        hf_config = self.hf_config(self.plan.stages[0].depth)
        given = self.config.plan.init_from
        if given is None:
            weights = fresh_weights(hf_config, seed=self.config.seed, final=self._final_config)
            return TrainingState(0, weights)
        # A run whose checkpoints are all damaged begins again, and hasn't looked for it before.
        folder = self.init_from or pretrained.find(given)
        new = None if self.config.plan.new_vocabulary is None else self.tokenizer_dir
        weights, missing = pretrained.load(folder, hf_config, self._fresh_parameter, new)
        if missing:
            print(
                f"plan.init_from: {folder} lacks {', '.join(missing)}: these begin fresh",
                flush=True,
            )
        return TrainingState(0, weights)

    def grown(self, stage: Stage, state: TrainingState) -> TrainingState:
        """The state that `stage` begins with, from that at the end of the one before: weights grown,
        moments carried, copied or dropped."""
        policy = self.config.optimizer.state
        if stage.index == 1:
            return state
        if policy == "reset":
            state = replace(state, optimizer_state={})
        if stage.init == "keep":
            return state
        each = self.config.model.layers_per_block
        depths = self.plan.stages[stage.index - 2].depth // each, stage.depth // each
        family = FAMILIES[self.config.model.family]
        shapes = self._shapes(stage.depth)
        kinds = family.kinds(self.config.model, depths[1])
        weights = grow(
            state.weights,
            *depths,
            stage.init,
            fresh=self._fresh_parameter,
            block_prefix=family.block_prefix,
            shapes=shapes,
            kinds=kinds,
        )
        optimizer_state = grow_optimizer_state(
            state.optimizer_state,
            *depths,
            stage.init,
            copy=policy == "copy",
            block_prefix=family.block_prefix,
            shapes=shapes,
            kinds=kinds,
        )
        return replace(state, weights=weights, optimizer_state=optimizer_state)

    def shapes_after(self, step: int) -> dict[str, tuple[int, ...]] | None:
        """Each parameter's name and shape after `step` steps; None where the plan ends before."""
        if step > self.plan.total_steps:
            return None
        # At a stage's end the model hasn't grown yet.
        return self._shapes(self.plan.stage_at(max(0, step - 1)).depth)

    def _shapes(self, depth: int) -> dict[str, tuple[int, ...]]:
        return FAMILIES[self.config.model.family].parameter_shapes(self.hf_config(depth))

    def _fresh_parameter(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return fresh_parameter(name, shape, seed=self.config.seed, final=self._final_config)

    @cached_property
    def _final_config(self) -> PretrainedConfig:
        """Of the whole model, which initial values may depend on."""
        return self.hf_config(self.plan.stages[-1].depth)
