"""The batches of a stage: what recipe and plan say about them, put together for the loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from mslt_ds.data.instances import InstanceOptions
from mslt_ds.data.loader import GlobalBatch, global_batches
from mslt_ds.data.store import TokenStore
from mslt_ds.distributed.world import World
from mslt_ds.plan.stages import Stage
from mslt_ds.recipe.loading import Recipe


@dataclass(frozen=True)
class Batches:
    """This rank's batches for training and for held-out losses."""

    recipe: Recipe
    world: World
    device: torch.device
    store: TokenStore
    eval_store: TokenStore | None

    def training(self, stage: Stage, state: TrainingState) -> Iterator[GlobalBatch]:
        """The batches of the stage's steps from that of `state` on, without those passed over."""
        done = state.step - stage.start_step
        return self._batches(
            self.store,
            stage,
            start_step=stage.data_start_step + done,
            num_steps=stage.steps - done,
            gaps=state.passed_over.get(stage.seq_length, ()),
        )

    def evaluation(self, stage: Stage) -> Iterator[GlobalBatch] | None:
        """The held-out batches at the stage's sequence length; None without held-out text."""
        if self.eval_store is None:
            return None
        config = self.recipe.config
        num_steps = -(-config.evaluation.instances // config.train.global_batch_size)
        return self._batches(self.eval_store, stage, start_step=0, num_steps=num_steps)

    def _batches(
        self, store: TokenStore, stage: Stage, *, start_step: int, num_steps: int
    ) -> Iterator[GlobalBatch]:
        config = self.recipe.config
        data = config.data
        options = InstanceOptions(
            seq_length=stage.seq_length,
            max_predictions=config.max_predictions(stage.seq_length),
            masked_lm_prob=data.masked_lm_prob,
            short_seq_prob=data.short_seq_prob,
            input_format=data.input_format,
            masking=data.masking,
        )
        return global_batches(
            store,
            options,
            seed=config.seed,
            global_batch_size=config.train.global_batch_size,
            micro_batch_size=stage.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.world_size,
            start_step=start_step,
            num_steps=num_steps,
            num_workers=data.num_workers,
            device=self.device,
            say=partial(print, flush=True),
        )
