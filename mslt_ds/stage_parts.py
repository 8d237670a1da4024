"""What a stage trains with, as its recipe says: the model, the engine's settings, the feed."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from mslt_ds.config.sections import RunConfig
from mslt_ds.engine import EngineSettings
from mslt_ds.feed import Feed
from mslt_ds.model.compiled import wanted
from mslt_ds.model.staged import FrozenPrefix, StageModel
from mslt_ds.plan.memory import micro_batches_at_once
from mslt_ds.plan.stages import Stage
from mslt_ds.recipe.loading import Recipe
from mslt_ds.state import Weights

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def model_of(
    config: RunConfig,
    stage: Stage,
    hf_config: PretrainedConfig,
    weights: Weights,
    device: torch.device,
) -> StageModel:
    """A fresh model with `weights`, compiled where the recipe wants it.

    hf_config: of the stage's depth, with the objective's heads
    """
    train = config.train
    model = StageModel.build(
        hf_config,
        config.data.objective,
        stage.trained,
        weights,
        frozen_dropout=train.frozen_dropout == "on",
        dtype=_DTYPES[train.precision],
        device=device,
        prefix_dtype=_DTYPES[train.frozen_precision],
        train_embeddings=stage.train_embeddings,
    )
    if wanted(train.compile, device)[0]:
        model.compile()
    if train.prefix_graph == "on":
        model.graph()
    return model


def settings_of(recipe: Recipe, stage: Stage, world_size: int) -> EngineSettings:
    train = recipe.config.train
    return EngineSettings(
        optimizer=recipe.config.optimizer,
        deepspeed=recipe.deepspeed,
        precision=train.precision,
        gradient_clipping=train.gradient_clipping,
        micro_batch_size=stage.micro_batch_size,
        gradient_accumulation_steps=stage.gradient_accumulation_steps(world_size),
    )


def feed_of(
    config: RunConfig,
    stage: Stage,
    prefix: FrozenPrefix | None,
    device: torch.device,
    world_size: int,
) -> Feed:
    wanted_ahead = config.train.prefix_ahead
    ahead = wanted_ahead == "on"
    if wanted_ahead == "auto" and prefix is not None:
        # On a CPU of its own, a rank has nothing to wait for; and all threads share a generator.
        on_cpu = world_size > 1 and not prefix.dropout
        ahead = device.type == "cuda" or on_cpu
    at_once = micro_batches_at_once(config, stage, world_size)
    return Feed(prefix, device, config.seed, at_once=at_once, ahead=ahead)
