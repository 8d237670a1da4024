"""Run by test_engine.py under a launcher: twenty stages in one process leave nothing behind."""

from __future__ import annotations

import gc
import json
import os
import sys
import weakref

import psutil
import torch

from mslt_ds.config.sections import ModelConfig, OptimizerConfig
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.world import choose_device, join, leave, world_from_environment
from mslt_ds.engine import EngineSettings, StageEngine
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES
from mslt_ds.model.staged import StageModel

# The launcher puts its --local_rank first.
zero_stage, precision, optimizer = int(sys.argv[-3]), sys.argv[-2], sys.argv[-1]
BATCH, SEQ_LENGTH, PREDICTIONS, VOCAB = 2, 16, 3, 2000

world = world_from_environment(os.environ)
device = choose_device("cpu", world)
join(world, device, os.environ)
meter = TrafficMeter()
# 3.4 M parameters: a leak of one engine would be 50 MB or so, against a process of 500.
model_config = ModelConfig(num_hidden_layers=4, hidden_size=256, num_attention_heads=4,
                           intermediate_size=512, max_position_embeddings=SEQ_LENGTH)  # fmt: skip
config = FAMILIES["bert"].hf_config(model_config, 4, VOCAB, OBJECTIVES["nsp"].heads)
settings = EngineSettings(
    optimizer=OptimizerConfig.model_validate({"name": optimizer, "learning_rate": 1e-3}),
    deepspeed={"zero_optimization": {"stage": zero_stage}},
    precision=precision,
    gradient_clipping=1.0,
    micro_batch_size=BATCH,
    gradient_accumulation_steps=1,
)
inputs = {
    "input_ids": torch.randint(1, VOCAB, (BATCH, SEQ_LENGTH)),
    "token_type_ids": torch.zeros(BATCH, SEQ_LENGTH, dtype=torch.long),
    "attention_mask": torch.ones(BATCH, SEQ_LENGTH, dtype=torch.bool),
    "masked_positions": torch.ones(BATCH, PREDICTIONS, dtype=torch.long),
    "masked_labels": torch.ones(BATCH, PREDICTIONS, dtype=torch.long),
    "masked_weights": torch.ones(BATCH, PREDICTIONS),
    "pair_labels": torch.zeros(BATCH, dtype=torch.long),
}


def one_stage(weights, state, frozen_layers):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = StageModel.build(
        config,
        OBJECTIVES["nsp"],
        frozen_layers,
        weights,
        frozen_dropout=False,
        dtype=dtype,
        device=device,
    )
    engine = StageEngine(model, settings, weights, state, None, meter)
    for _ in range(2):
        mlm, nsp = engine.losses(inputs)
        engine.backward((mlm + nsp) / world.world_size)
        engine.step(1e-3)
    weights, state = weights | engine.weights(), state | engine.optimizer_state()
    left = [weakref.ref(engine._engine), weakref.ref(model.suffix)]
    engine.close()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.suffix.modules())
    return weights, state, left, hooks


weights, state = fresh_weights(config, seed=1), {}
memory, alive, hooks_left = [], 0, 0
engines_before = sum(type(o).__name__ == "DeepSpeedEngine" for o in gc.get_objects())
for stage in range(20):
    weights, state, left, hooks = one_stage(weights, state, frozen_layers=(0, 2)[stage % 2])
    gc.collect()
    alive += sum(reference() is not None for reference in left)
    hooks_left += hooks
    memory.append(psutil.Process().memory_info().rss)
engines = sum(type(o).__name__ == "DeepSpeedEngine" for o in gc.get_objects()) - engines_before
if world.is_main:
    print("RESULT", json.dumps({"memory": memory, "alive": alive, "hooks": hooks_left,
                                "engines": engines}))  # fmt: skip
leave()
