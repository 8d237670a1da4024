"""What it costs to apply and to write only finite numbers.

    python -m benchmarks.finite_check [--model tiny|base|large] [--batch N] [--seq-length N] [--repeats N]

Measures, for one process at ZeRO 0 in fp32, where DeepSpeed checks nothing: a step of the whole model; the
check of its gradient where gradients are clipped, so that their norm is there anyway, and where they aren't; and
the check of weights and moments before a checkpoint is written. Prints each check as a share of the step, and
writes a dated JSON to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import record
from benchmarks.peers import OurStep, recipe_of
from benchmarks.turns import medians, seconds_of
from mslt_ds.batches import Batches
from mslt_ds.data.store import TokenStore
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.world import World, choose_device, join, leave
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.planning.calibrate import make_up_store
from mslt_ds.state import TrainingState


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    world = World(rank=0, world_size=1, local_rank=0)
    device = choose_device("auto", world)
    store = TokenStore.open(make_up_store(folder))
    recipe = recipe_of(options, store, "fp32", device)
    config, stage = recipe.config, recipe.plan.stages[-1]
    batches = [*islice(Batches(recipe, world, device, store, None).training(stage, TrainingState(0)), 2)]  # fmt: skip
    vocab_size = config.model.vocab_size
    assert vocab_size is not None
    hf_config = FAMILIES["bert"].hf_config(
        config.model, stage.depth, vocab_size, config.data.objective.heads
    )
    with ExitStack() as stack:
        join(world, device, os.environ)
        stack.callback(leave)
        weights = fresh_weights(hf_config, seed=config.seed)
        ours = OurStep(recipe, stage, weights, batches, TrafficMeter(), device)
        stack.callback(ours.engine.close)
        ours.run(1)  # moments exist from here on
        gradients = [torch.randn_like(p) for p in ours.engine.model.suffix.parameters()]
        norm = torch.nn.utils.get_total_norm(gradients)
        state = ours.engine.state(1)
        seconds = medians(
            {
                "step": lambda: seconds_of(lambda: ours.run(1), device),
                "clipped": lambda: seconds_of(lambda: bool(norm.isfinite()), device),
                "not_clipped": lambda: seconds_of(
                    lambda: bool(torch.nn.utils.get_total_norm(gradients).isfinite()), device
                ),
                "checkpoint": lambda: seconds_of(state.is_finite, device),
            },
            options.repeats,
        )
    return {
        "model": options.model, "batch": options.batch, "seq_length": options.seq_length,
        "seconds": seconds,
        "of_a_step": {name: value / seconds["step"] for name, value in seconds.items() if name != "step"},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else [*arguments]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finite_check")
    parser.add_argument("--model", choices=("tiny", "base", "large"), default="base")
    parser.add_argument("--batch", type=int, default=16, help="instances in a step")
    parser.add_argument("--seq-length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    for name, share in figures["of_a_step"].items():
        print(f"{name:12} {figures['seconds'][name]:.4f} s, {share:.4%} of a step")
    record.write("finite_check", ["benchmarks.finite_check", *given], figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
