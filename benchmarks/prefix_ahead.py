"""What a prefix that runs one pass ahead hides of a slow network's time.

    python -m benchmarks.prefix_ahead [--hidden N] [--batch N] [--steps N] [--repeats N]

Two processes on this machine train one layer above `--frozen` frozen ones. Each reduction of a step's
gradients sleeps 0, 1, 2 and 5 times the seconds of the suffix's backward pass first, as a slow network
would. Steps with and without `train.prefix_ahead` take turns. Writes a dated JSON to
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import record
from mslt_ds.config.sections import ModelConfig, OptimizerConfig
from mslt_ds.data.loader import GlobalBatch, MicroBatch
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.world import join, leave, world_from_environment
from mslt_ds.engine import EngineSettings, StageEngine
from mslt_ds.feed import Feed
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES
from mslt_ds.model.staged import StageModel
from mslt_ds.state import TrainingState

RANKS, VOCAB, SEQ_LENGTH, PREDICTIONS = 2, 8000, 128, 20
DELAYS = (0, 1, 2, 5)  # times the suffix's backward pass
CPU = torch.device("cpu")


def batch_of(batch: int) -> GlobalBatch:
    """A global batch of one micro-batch for each rank, without padding."""
    shape, masked = (batch, SEQ_LENGTH), (batch, PREDICTIONS)
    fields = {
        "input_ids": torch.randint(5, VOCAB, shape),
        "token_type_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.ones(shape, dtype=torch.bool),
        "masked_positions": torch.arange(1, PREDICTIONS + 1).expand(masked),
        "masked_labels": torch.randint(5, VOCAB, masked),
        "masked_weights": torch.ones(masked),
    }
    return GlobalBatch([MicroBatch(0, fields)], (RANKS * masked[0] * masked[1],), batch, (0, batch))


def engine_of(hidden: int, frozen: int, batch: int) -> StageEngine:
    objective = OBJECTIVES["full_sentences"]
    model = ModelConfig(
        num_hidden_layers=frozen + 1, hidden_size=hidden, num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden, max_position_embeddings=SEQ_LENGTH,
    )  # fmt: skip
    config = FAMILIES["bert"].hf_config(model, frozen + 1, VOCAB, objective.heads)
    weights = fresh_weights(config, seed=1)
    stage = StageModel.build(
        config,
        objective,
        range(frozen, frozen + 1),
        weights,
        frozen_dropout=False,
        dtype=torch.float32,
        device=CPU,
    )
    settings = EngineSettings(
        optimizer=OptimizerConfig.model_validate({"name": "adamw", "learning_rate": 1e-4}),
        deepspeed={}, precision="fp32", gradient_clipping=1.0, micro_batch_size=batch,
        gradient_accumulation_steps=1,
    )  # fmt: skip
    return StageEngine(stage, settings, TrainingState(0, weights), TrafficMeter())


def seconds_of_steps(engine: StageEngine, batch: GlobalBatch, steps: int, *, ahead: bool) -> float:
    """Mean seconds of a step, the first left out: nothing runs ahead of it."""
    began = 0.0
    feed = Feed(engine.model.prefix, CPU, seed=1, ahead=ahead)
    for fed in feed.training([batch] * (steps + 1), first_step=0):
        engine.accumulate(fed.inputs, batch.denominators)
        engine.step(1e-4)
        if fed.step == 0:
            began = time.perf_counter()
    return (time.perf_counter() - began) / steps


def parts_of(engine: StageEngine, batch: GlobalBatch) -> tuple[float, float]:
    """Seconds of the prefix, and of the suffix's backward pass without a reduction."""
    assert engine.model.prefix is not None
    (fields,) = (micro_batch.fields for micro_batch in batch.micro_batches)
    prefix, backward = [], []
    for _ in range(4):
        began = time.perf_counter()
        states = engine.model.prefix(fields)
        prefix.append(time.perf_counter() - began)
        (loss,) = engine.model.suffix(fields, states, engine.model.prefix.decoder_weight)
        began = time.perf_counter()
        torch.autograd.grad(loss, list(engine.model.suffix.parameters()), allow_unused=True)
        backward.append(time.perf_counter() - began)
    return statistics.median(prefix[1:]), statistics.median(backward[1:])


def slowed(reduce: Callable[..., Any], delay: list[float]) -> Callable[..., Any]:
    def wait_and_reduce(*arguments: Any, **named: Any) -> Any:
        time.sleep(delay[0])
        return reduce(*arguments, **named)

    return wait_and_reduce


def measure(options: argparse.Namespace) -> None:
    world = world_from_environment(os.environ)
    join(world, CPU, os.environ)
    torch.manual_seed(world.rank)
    batch, delay = batch_of(options.batch), [0.0]
    engine = engine_of(options.hidden, options.frozen, options.batch)
    prefix, backward = parts_of(engine, batch)
    agreed = torch.tensor([prefix, backward])
    torch.distributed.all_reduce(agreed)
    prefix, backward = (agreed / RANKS).tolist()
    inner = engine._engine
    inner.allreduce_gradients = slowed(inner.allreduce_gradients, delay)
    figures: dict[str, Any] = {"prefix_seconds": prefix, "backward_seconds": backward, "delays": {}}
    for factor in DELAYS:
        delay[0] = factor * backward
        found: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.repeats):
            for ahead, seconds in found.items():
                seconds.append(seconds_of_steps(engine, batch, options.steps, ahead=ahead))
        off, on = (statistics.median(found[ahead]) for ahead in (False, True))
        figures["delays"][str(factor)] = {
            "delay_seconds": delay[0], "step_seconds": {"off": off, "on": on},
            "hidden_share_of_prefix": (off - on) / prefix,
        }  # fmt: skip
        if world.is_main:
            print(f"delay {factor} x backward: off {off:.3f} s, on {on:.3f} s, hidden "
                  f"{(off - on) / prefix:.0%} of the prefix's {prefix:.3f} s", flush=True)  # fmt: skip
    if world.is_main:
        settings = dict(vars(options))
        record.write("prefix_ahead", ["benchmarks.prefix_ahead"], settings | figures,
                     packages=("torch", "deepspeed"))  # fmt: skip
    engine.close()
    leave()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix_ahead")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--frozen", type=int, default=3, help="frozen layers")
    parser.add_argument("--batch", type=int, default=8, help="instances in a micro-batch")
    parser.add_argument("--steps", type=int, default=4, help="steps of a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if "RANK" in os.environ:
        measure(options)
        return 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(RANKS),
              "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.prefix_ahead", *sys.argv[1:]]
    ranks = [
        subprocess.Popen(
            command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(RANKS)
    ]
    return max(rank.wait() for rank in ranks)


if __name__ == "__main__":
    raise SystemExit(main())
