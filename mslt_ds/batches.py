"""The batches of a stage: what recipe and plan say about them, put together for the loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from mslt_ds.data.loader import GlobalBatch, global_batches
from mslt_ds.data.store import TokenStore
from mslt_ds.distributed.world import World
from mslt_ds.model import compiled
from mslt_ds.plan.stages import Stage, held_out
from mslt_ds.recipe.loading import Recipe
from mslt_ds.state import TrainingState


@dataclass(frozen=True)
class Batches:
    """This rank's batches for training and for held-out losses."""

    recipe: Recipe
    world: World
    device: torch.device
    store: TokenStore
    eval_store: TokenStore | None

    @property
    def digests(self) -> dict[str, str]:
        """The recipe's key of each token store -> the store's digest."""
        stores = {"data.path": self.store, "data.eval_path": self.eval_store}
        return {key: store.digest for key, store in stores.items() if store is not None}

    def training(self, stage: Stage, state: TrainingState) -> Iterator[GlobalBatch]:
        """The batches of the stage's steps from that of `state` on, without those passed over."""
        return self._batches(
            self.store,
            stage,
            first_step=state.step,
            gaps=state.passed_over.get(stage.seq_length, ()),
        )

    def evaluation(self, stage: Stage) -> Iterator[GlobalBatch] | None:
        """The held-out batches at the stage's sequence length; None without held-out text."""
        if self.eval_store is None:
            return None
        held = held_out(self.recipe.config, stage)
        return self._batches(self.eval_store, held, first_step=held.start_step)

    def _batches(
        self,
        store: TokenStore,
        stage: Stage,
        *,
        first_step: int,
        gaps: tuple[tuple[int, int], ...] = (),
    ) -> Iterator[GlobalBatch]:
        """The global batches of the stage's steps from `first_step` on, without `gaps`."""
        config = self.recipe.config
        data = config.data
        instances = data.objective.instances(
            data,
            stage.seq_length,
            stage.masked_lm_prob,
            config.max_predictions(stage.seq_length, stage.masked_lm_prob),
        )
        return global_batches(
            store,
            instances,
            data.objective,
            seed=config.seed,
            global_batch_size=stage.global_batch_size,
            micro_batch_size=stage.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.world_size,
            first_instance=stage.instance_at(first_step),
            num_steps=stage.end_step - first_step,
            first_step=first_step,
            gaps=gaps,
            unpadded_sizes=config.train.unpadded_sizes if config.train.unpadded == "on" else None,
            always_places=compiled.wanted(config.train.compile, self.device)[0],
            num_workers=data.num_workers,
            device=self.device,
            say=partial(print, flush=True),
        )
