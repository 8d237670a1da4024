"""Run by test_engine.py under a launcher: the dynamic loss scale of fp16, at every ZeRO stage.

DeepSpeed refuses fp16 on a CPU for want of speed, not of arithmetic; here it's told otherwise.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from mslt_ds.config.sections import ModelConfig, OptimizerConfig
from mslt_ds.distributed.sharing import broadcast_tensors, share_training
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.world import choose_device, join, leave, world_from_environment
from mslt_ds.engine import EngineSettings, StageEngine
from mslt_ds.feed import SuffixInputs
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES
from mslt_ds.model.staged import StageModel
from mslt_ds.state import TrainingState

BATCH, SEQ_LENGTH, PREDICTIONS, VOCAB, STEPS, RATE = 4, 16, 3, 200, 6, 1e-3
WINDOW, FIRST_SCALE = 2, 2.0**10

accelerator: Any = get_accelerator()
accelerator.is_fp16_supported = lambda: True
world = world_from_environment(os.environ)
device = choose_device("cpu", world)
join(world, device, os.environ)
meter = TrafficMeter()
model_config = ModelConfig(
    num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=SEQ_LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
config = FAMILIES["bert"].hf_config(model_config, 2, VOCAB, OBJECTIVES["nsp"].heads)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def batch(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + world.rank)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(1, high, shape, generator=generator)

    return {
        "input_ids": draw(VOCAB, BATCH, SEQ_LENGTH),
        "token_type_ids": torch.zeros(BATCH, SEQ_LENGTH, dtype=torch.long),
        "attention_mask": torch.ones(BATCH, SEQ_LENGTH, dtype=torch.bool),
        "masked_positions": draw(SEQ_LENGTH, BATCH, PREDICTIONS),
        "masked_labels": draw(VOCAB, BATCH, PREDICTIONS),
        "masked_weights": torch.ones(BATCH, PREDICTIONS),
        "pair_labels": torch.zeros(BATCH, dtype=torch.long),
    }


def engine_of(precision, zero_stage, state: TrainingState, **fp16) -> StageEngine:
    model = StageModel.build(
        config,
        OBJECTIVES["nsp"],
        range(config.num_hidden_layers),
        state.weights,
        frozen_dropout=False,
        dtype=DTYPES[precision],
        device=device,
    )
    settings = EngineSettings(
        optimizer=OptimizerConfig(name="adamw", learning_rate=RATE),
        deepspeed={
            "zero_optimization": {"stage": zero_stage},
            "fp16": {"initial_scale_power": 10, "loss_scale_window": WINDOW, "hysteresis": 1}
            | fp16,
        },
        precision=precision,
        gradient_clipping=0.5,
        micro_batch_size=BATCH,
        gradient_accumulation_steps=1,
    )
    trained = frozenset(state.weights)
    return StageEngine(model, settings, share_training(state, trained, device), meter)


def train(precision: str, zero_stage: int, *, boundary_after: int | None = None) -> dict:
    engine = engine_of(precision, zero_stage, TrainingState(0, fresh_weights(config, seed=1)))
    norms, scales = [], []
    for step in range(STEPS):
        if step == boundary_after:
            state = engine.state(step)
            engine.close()
            state = replace(state, weights=broadcast_tensors(state.weights, device))
            engine = engine_of(precision, zero_stage, state)
        scales.append(engine.loss_scale())
        instances = BATCH * world.world_size
        inputs = SuffixInputs(batch(step), None, None)
        engine.accumulate(inputs, (instances * PREDICTIONS, instances))
        engine.step(RATE)
        norms.append(engine.grad_norm())
    weights = broadcast_tensors(engine.state(STEPS).weights, device)
    engine.close()
    return {"norms": norms, "scales": scales, "weights": weights}


def scales_dynamically(zero_stage: int, **fp16) -> bool:
    engine = engine_of("fp16", zero_stage, TrainingState(0, fresh_weights(config, seed=1)), **fp16)
    try:
        return engine.scales_dynamically
    finally:
        engine.close()


def largest_difference(left: dict, right: dict) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


exact = train("fp32", 0)
results = {}
for zero_stage in (0, 1, 2):
    whole = train("fp16", zero_stage)
    cut = train("fp16", zero_stage, boundary_after=3)
    results[zero_stage] = {
        "norms": whole["norms"],
        "scales": whole["scales"],
        "difference": largest_difference(whole["weights"], exact["weights"]),
        "boundary_difference": largest_difference(whole["weights"], cut["weights"]),
        "boundary_scales": cut["scales"],
        "dynamic": [scales_dynamically(zero_stage), scales_dynamically(zero_stage, loss_scale=8)],
    }
if world.is_main:
    print("RESULT", json.dumps({"exact_norms": exact["norms"], "fp16": results}))
leave()
