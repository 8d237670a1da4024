"""Run by test_engine.py under a launcher: twenty stages in one process leave nothing behind."""

from __future__ import annotations

import gc
import json
import os
import sys
import weakref
from dataclasses import replace

import psutil
import torch

from mslt_ds.config.sections import ModelConfig, OptimizerConfig
from mslt_ds.data.loader import GlobalBatch, MicroBatch
from mslt_ds.distributed.sharing import broadcast_tensors, share_training
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.world import choose_device, join, leave, world_from_environment
from mslt_ds.engine import EngineSettings, StageEngine
from mslt_ds.feed import Feed
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES
from mslt_ds.model.staged import StageModel
from mslt_ds.state import TrainingState

zero_stage, precision, optimizer = int(sys.argv[1]), sys.argv[2], sys.argv[3]
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
batch = GlobalBatch([MicroBatch(0, {
    "input_ids": torch.randint(1, VOCAB, (BATCH, SEQ_LENGTH)),
    "token_type_ids": torch.zeros(BATCH, SEQ_LENGTH, dtype=torch.long),
    "attention_mask": torch.ones(BATCH, SEQ_LENGTH, dtype=torch.bool),
    "masked_positions": torch.ones(BATCH, PREDICTIONS, dtype=torch.long),
    "masked_labels": torch.ones(BATCH, PREDICTIONS, dtype=torch.long),
    "masked_weights": torch.ones(BATCH, PREDICTIONS),
    "pair_labels": torch.zeros(BATCH, dtype=torch.long),
})], denominators=(1, 1), num_instances=BATCH, instances=(0, BATCH))  # fmt: skip


def one_stage(state, frozen_layers):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = StageModel.build(
        config,
        OBJECTIVES["nsp"],
        range(frozen_layers, config.num_hidden_layers),
        state.weights,
        frozen_dropout=False,
        dtype=dtype,
        device=device,
    )
    trained = frozenset(name for name, _ in model.suffix.named_parameters())
    engine = StageEngine(model, settings, share_training(state, trained, device), meter)
    (micro_batch,) = Feed(model.prefix, device, seed=1).evaluation([batch])
    for _ in range(2):
        engine.accumulate(micro_batch, (world.world_size, world.world_size))
        engine.step(1e-3)
    state = engine.state(step=0)
    left = [weakref.ref(engine._engine), weakref.ref(model.suffix)]
    engine.close()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.suffix.modules())
    return state, left, hooks


state = TrainingState(0, fresh_weights(config, seed=1))
memory, alive, hooks_left = [], 0, 0
engines_before = sum(type(o).__name__ == "DeepSpeedEngine" for o in gc.get_objects())
for stage in range(20):
    state = replace(state, weights=broadcast_tensors(state.weights, device))
    state, left, hooks = one_stage(state, frozen_layers=(0, 2)[stage % 2])
    gc.collect()
    alive += sum(reference() is not None for reference in left)
    hooks_left += hooks
    memory.append(psutil.Process().memory_info().rss)
engines = sum(type(o).__name__ == "DeepSpeedEngine" for o in gc.get_objects()) - engines_before
if world.is_main:
    print("RESULT", json.dumps({"memory": memory, "alive": alive, "hooks": hooks_left,
                                "engines": engines}))  # fmt: skip
leave()
