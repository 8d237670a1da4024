"""Seconds of a step of each stage, compared with a step of the full model, on this machine.

    python -m benchmarks [--config RECIPE] [--set key=value ...] [--batch N] [--repeats N]

Times forward and backward passes for each distinct depth and number of frozen layers in a recipe's
plan, in one process, on one micro-batch and without an optimizer: the arithmetic that freezing saves.
Writes a dated JSON with the command, hardware and versions to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.turns import medians, seconds_of
from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import MsltError, report
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.staged import StageModel
from mslt_ds.plan.cost import ASSUMED_VOCAB_SIZE
from mslt_ds.recipe.loading import load_recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def random_inputs(
    config: RunConfig, batch: int, vocab_size: int, device: torch.device
) -> dict[str, Tensor]:
    """A micro-batch of random tokens without padding and with all predictions used."""
    length = config.data.seq_length
    predictions = config.max_predictions(length)
    second = length // 2 if "pair" in config.data.objective.heads else length  # where B begins
    shape, masked = (batch, length), (batch, predictions)
    generator = torch.Generator().manual_seed(config.seed)
    positions = torch.rand(batch, length - 1, generator=generator).argsort(dim=1)[:, :predictions]
    inputs = {
        "input_ids": torch.randint(5, vocab_size, shape, generator=generator),
        "token_type_ids": (torch.arange(length) >= second).long().expand(shape),
        "attention_mask": torch.ones(shape, dtype=torch.bool),
        "masked_positions": positions.sort(dim=1).values + 1,
        "masked_labels": torch.randint(5, vocab_size, masked, generator=generator),
        "masked_weights": torch.ones(masked),
        "pair_labels": torch.randint(0, 2, (batch,), generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def step_of(
    config: RunConfig, depth: int, frozen_layers: int, batch: int, device: torch.device
) -> Callable[[], None]:
    """A forward and backward pass of a stage with this depth and number of frozen layers."""
    vocab_size = config.model.vocab_size or ASSUMED_VOCAB_SIZE
    hf_config = FAMILIES[config.model.family].hf_config(
        config.model, depth, vocab_size, config.data.objective.heads
    )
    dtype = DTYPES[config.train.precision]
    model = StageModel.build(
        hf_config,
        config.data.objective,
        range(frozen_layers, depth),
        fresh_weights(hf_config, seed=config.seed),
        frozen_dropout=config.train.frozen_dropout == "on",
        dtype=dtype,
        device=device,
    )
    suffix = model.suffix.to(dtype).train()
    inputs = random_inputs(config, batch, vocab_size, device)

    def step() -> None:
        suffix.zero_grad(set_to_none=True)
        hidden_states = decoder_weight = None
        if model.prefix is not None:
            hidden_states = model.prefix(inputs)
            decoder_weight = model.prefix.decoder_weight
        losses = suffix(inputs, hidden_states, decoder_weight)
        (torch.stack(losses).sum() / batch).backward()

    return step


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time stages' steps.")
    parser.add_argument("--config", default="configs/bert_base_mslt.yaml", metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--batch", type=int, default=8, help="instances in the micro-batch")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The recipes train in fp16, which needs a GPU.
    defaults = [] if device.type == "cuda" else ["train.precision=fp32"]
    try:
        recipe = load_recipe(options.config, [*defaults, *options.overrides])
    except MsltError as error:
        return report(error)
    config = recipe.config
    layers = config.model.num_hidden_layers
    cuts = {"full": (layers, 0)}
    for stage in recipe.plan.stages:
        name = f"stage of depth {stage.depth}, {stage.trainable_layers} trainable"
        if (stage.depth, stage.frozen_layers) not in cuts.values():
            cuts[name] = (stage.depth, stage.frozen_layers)
    steps = {
        name: step_of(config, depth, frozen, options.batch, device)
        for name, (depth, frozen) in cuts.items()
    }
    seconds = medians(
        {name: partial(seconds_of, step, device) for name, step in steps.items()}, options.repeats
    )

    print(f"{'step':32} {'seconds':>9} {'speed':>6}")
    for name, value in seconds.items():
        print(f"{name:32} {value:9.3f} {seconds['full'] / value:6.2f}")
    figures = {
        "recipe": options.config,
        "micro_batch_size": options.batch,
        "seq_length": config.data.seq_length,
        "precision": config.train.precision,
        "seconds": seconds,
        "speed_against_full": {name: seconds["full"] / value for name, value in seconds.items()},
    }
    record.write(
        f"step_time_{device.type}", ["benchmarks", *(arguments or sys.argv[1:])], figures,
        device=device, packages=("torch", "transformers"),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
