"""The real modules of a planned stage, which costs by arithmetic are compared with."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from mslt_ds.config.sections import RunConfig
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.staged import StageModel
from mslt_ds.plan.stages import Stage


def real_config(config: RunConfig, stage: Stage, vocab_size: int) -> PretrainedConfig:
    return FAMILIES[config.model.family].hf_config(
        config.model,
        stage.depth,
        vocab_size,
        heads=config.data.objective.heads,
        special={"pad": 0, "cls": 1, "sep": 2},
    )


def real_model(
    config: RunConfig, stage: Stage, vocab_size: int, *, frozen_dropout: bool
) -> StageModel:
    hf_config = real_config(config, stage, vocab_size)
    return StageModel.build(
        hf_config,
        config.data.objective,
        stage.trained,
        fresh_weights(hf_config, seed=1),
        frozen_dropout=frozen_dropout,
        dtype=torch.float32,
        device=torch.device("cpu"),
        train_embeddings=stage.train_embeddings,
    )
