"""The states that stages begin with: fresh weights, those of a model that exists, and grown ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from mslt_ds.config.sections import RunConfig
from mslt_ds.data.store import TokenStore
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
    store: TokenStore
    init_from: Path | None = None
    """The folder of `plan.init_from`, where it has been looked for."""

    def hf_config(self, depth: int) -> PretrainedConfig:
        """The configuration of the recipe's model at `depth` layers."""
        model = self.config.model
        return FAMILIES[model.family].hf_config(
            model,
            depth,
            model.vocab_size or self.store.vocab_size,
            self.config.data.objective.heads,
            asdict(self.store.corpus.special),
        )

    def first(self) -> TrainingState:
        """Fresh weights, or those of `plan.init_from` with its missing heads fresh."""
        hf_config = self.hf_config(self.plan.stages[0].depth)
        given = self.config.plan.init_from
        if given is None:
            weights = fresh_weights(hf_config, seed=self.config.seed, final=self._final_config)
            return TrainingState(0, weights)
        # A run whose checkpoints are all damaged begins again, and hasn't looked for it before.
        folder = self.init_from or pretrained.find(given)
        new = None if self.config.plan.new_vocabulary is None else self.store.tokenizer_dir
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
        if stage.index == 1:
            return state
        if self.config.optimizer.state == "reset":
            state = replace(state, optimizer_state={})
        if stage.init == "keep":
            return state
        before = self.plan.stages[stage.index - 2]
        return self.grow(state, before.depth, stage.depth, stage.init)

    def grow(
        self, state: TrainingState, depth_from: int, depth_to: int, operator: str
    ) -> TrainingState:
        """The state of `depth_from` layers as that of `depth_to` layers."""
        model = self.config.model
        family, each = FAMILIES[model.family], model.layers_per_block
        growth: dict[str, Any] = {
            "depth_from": depth_from // each,
            "depth_to": depth_to // each,
            "operator": operator,
            "block_prefix": family.block_prefix,
            "shapes": self._shapes(depth_to),
            "kinds": family.kinds(model, depth_to // each),
        }
        return replace(
            state,
            weights=grow(state.weights, fresh=self._fresh_parameter, **growth),
            optimizer_state=grow_optimizer_state(
                state.optimizer_state, copy=self.config.optimizer.state == "copy", **growth
            ),
        )

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
