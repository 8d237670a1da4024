"""What each rank does before it joins the others: it opens and checks the data and finds the checkpoint
to resume from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from mslt_ds.batches import Batches
from mslt_ds.config.sections import RunConfig
from mslt_ds.data.store import TokenStore
from mslt_ds.disk import checkpoint, pretrained
from mslt_ds.disk.checkpoint import CheckpointFolder
from mslt_ds.disk.lock import RunLock
from mslt_ds.disk.run_folder import RunFolder
from mslt_ds.disk.writer import Writer
from mslt_ds.distributed.world import World
from mslt_ds.errors import RecipeError
from mslt_ds.model import compiled
from mslt_ds.model.families import FAMILIES
from mslt_ds.plan import cost
from mslt_ds.recipe.loading import Recipe
from mslt_ds.report.model_card import write_model_card
from mslt_ds.stage_states import StageStates
from mslt_ds.state import Weights
from mslt_ds.telemetry.rates import Rates


@dataclass(frozen=True)
class Prepared:
    """What one rank has of a run before the ranks join. `prepare` makes it."""

    recipe: Recipe
    world: World
    device: torch.device
    batches: Batches
    folder: RunFolder
    states: StageStates
    description: dict[str, Any]
    """The plan with its costs, as `mslt-ds plan` prints it."""

    @property
    def config(self) -> RunConfig:
        return self.recipe.config

    @cached_property
    def rates(self) -> Rates:
        vocab_size = self.description["vocab_size"]
        return Rates.on(self.config, vocab_size, self.device, self.world.world_size)

    @cached_property
    def compiles(self) -> bool:
        return compiled.wanted(self.config.train.compile, self.device)[0]

    def save_model(self, name: str, depth: int, weights: Weights) -> None:
        """A model of the run folder with its card. On rank 0; elsewhere nothing happens."""
        write_card = partial(write_model_card, self.folder.path, name)
        self.folder.save_model(name, depth, weights, write_card)


def prepare(
    recipe: Recipe, world: World, device: torch.device, lock: RunLock | None = None
) -> Prepared:
    """Open the data and find the checkpoint to resume from. Needs no process group.

    lock: on the run's folder; None on all ranks but 0
    """
    config, plan = recipe.config, recipe.plan
    store = TokenStore.open(Path(config.data.path))
    held_out = config.data.eval_path
    eval_store = None if held_out is None else TokenStore.open(Path(held_out))
    _check_vocabularies(config, store, eval_store)
    if world.local_rank == 0:  # a machine may have a copy of its own
        for opened in (store, eval_store):
            if opened is not None:
                opened.verify_at_start()
    _check_positions(recipe, store)
    keep = config.checkpoint
    states = StageStates(config, plan, store)
    checkpoints = CheckpointFolder(config.run_dir / "checkpoints", keep.keep, keep.keep_every)
    folder = RunFolder(
        config.run_dir,
        world.is_main,
        checkpoints,
        checkpoint.fingerprint(config, store.digest),
        states.hf_config,
        store.tokenizer_dir,
        Writer(keep.give_up_after),
        lock,
    )
    # Importing the model's classes takes seconds. All ranks do it here, where none waits for another.
    FAMILIES[config.model.family].model_class(states.hf_config(plan.stages[-1].depth))
    # Rank 0 alone reads checkpoints, which the other ranks may see late.
    resumes = world.is_main and checkpoints.read_newest(folder.check_resumable)
    if config.plan.init_from is not None and world.is_main and not resumes:
        found = pretrained.find(config.plan.init_from)
        pretrained.check_folder(
            found,
            states.hf_config(plan.stages[0].depth),
            store.tokenizer_dir,
            new_vocabulary=config.plan.new_vocabulary is not None,
        )
        states = replace(states, init_from=found)
    return Prepared(
        recipe,
        world,
        device,
        Batches(recipe, world, device, store, eval_store),
        folder,
        states,
        cost.describe_plan(
            config,
            plan,
            vocab_size=config.model.vocab_size or store.vocab_size,
            world_size=world.world_size,
            zero_stage=recipe.zero_stage,
        ),
    )


def _check_positions(recipe: Recipe, store: TokenStore) -> None:
    model, pad = recipe.config.model, store.corpus.special.pad
    longest = FAMILIES[model.family].longest_sequence(model.max_position_embeddings, pad)
    needed = max(stage.seq_length for stage in recipe.plan.stages)
    if needed > longest:
        raise RecipeError(
            f"model.max_position_embeddings: {model.max_position_embeddings} rows are enough for "
            f"{longest} tokens, since those up to the padding token's id, {pad} in data.path, hold no "
            f"position, and the recipe's sequences have {needed}; choose "
            f"{model.max_position_embeddings + needed - longest} or more"
        )


def _check_vocabularies(
    config: RunConfig, store: TokenStore, eval_store: TokenStore | None
) -> None:
    needed, given = store.vocab_size, config.model.vocab_size
    if given is not None and given < needed:
        raise RecipeError(
            f"model.vocab_size: {given} is below the {needed} tokens of data.path "
            f"{config.data.path}; leave it out, or choose {needed} or more"
        )
    if eval_store is not None and not eval_store.same_vocabulary(store):
        raise RecipeError(
            f"data.eval_path: {config.data.eval_path} was prepared with another "
            f"vocabulary than data.path {config.data.path}; prepare it with "
            f"--tokenizer {config.data.path}"
        )
