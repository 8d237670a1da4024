"""What leaving padding out saves, on the instances of a token store.

    python -m benchmarks.unpadded STORE [--format F] [--seq-length N] [--batch N] [--sizes N]
                                  [--depth N] [--frozen N] [--hidden N] [--compile] [--repeats N]

Prints how many positions are filled, and how many run beside these because counts are rounded up to
`--sizes` sizes (`train.unpadded_sizes`). Then times forward and backward pass of one micro-batch padded
and unpadded, in turns, in seconds of processor time on a CPU, which other processes disturb least.
Writes a dated JSON to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.turns import medians, synchronize
from mslt_ds.config.sections import ModelConfig
from mslt_ds.data.instances import InstanceOptions
from mslt_ds.data.loader import global_batches
from mslt_ds.data.store import TokenStore
from mslt_ds.data.unpadding import places_to_run
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES, MaskedLM
from mslt_ds.model.rows import PREDICTION_PLACES, TOKEN_PLACES
from mslt_ds.model.staged import StageModel

MICRO_BATCHES = 64


def micro_batches(options: argparse.Namespace) -> list[dict[str, Tensor]]:
    length = options.seq_length
    instances = InstanceOptions(length, -(-20 * length // 128), input_format=options.format)
    batches = global_batches(
        TokenStore.open(options.store), instances, OBJECTIVES[options.format], seed=1,
        global_batch_size=options.batch, micro_batch_size=options.batch, rank=0, world_size=1,
        first_instance=0, num_steps=MICRO_BATCHES,
    )  # fmt: skip
    return [batch.micro_batches[0].fields for batch in batches]


def shares(all_fields: list[dict[str, Tensor]], sizes: int) -> dict[str, float]:
    """Of tokens and predictions: the filled share of their places, what runs beside those in use, and
    how many different counts there are."""
    found: dict[str, float] = {}
    for name, key, grid in (
        ("tokens", TOKEN_PLACES, lambda fields: fields["attention_mask"]),
        ("predictions", PREDICTION_PLACES, lambda fields: fields["masked_weights"] > 0),
    ):
        places = sum(grid(fields).numel() for fields in all_fields)
        used = sum(int(grid(fields).sum()) for fields in all_fields)
        runs = [
            len(chosen) if (chosen := places_to_run(fields, MaskedLM.grids, sizes).get(key)) is not None
            else grid(fields).numel()
            for fields in all_fields
        ]  # fmt: skip
        found |= {f"{name}_filled": used / places, f"{name}_wasted": sum(runs) / used - 1}
        found[f"{name}_counts"] = len(set(runs))
    return found


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    synchronize(device)
    began = clock()
    step()
    synchronize(device)
    return clock() - began


def model_of(options: argparse.Namespace, device: torch.device) -> StageModel:
    objective, hidden = OBJECTIVES[options.format], options.hidden
    model = ModelConfig(
        num_hidden_layers=options.depth, hidden_size=hidden, num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden, max_position_embeddings=options.seq_length,
    )  # fmt: skip
    config = FAMILIES["bert"].hf_config(model, options.depth, 30522, objective.heads)
    weights = fresh_weights(config, seed=1)
    return StageModel.build(
        config, objective, range(options.frozen, options.depth), weights, frozen_dropout=False,
        dtype=torch.float32, device=device,
    )  # fmt: skip


def step_of(model: StageModel, fields: dict[str, Tensor], device: torch.device) -> None:
    inputs = {name: tensor.to(device) for name, tensor in fields.items()}
    hidden_states = decoder_weight = None
    if model.prefix is not None:
        hidden_states, decoder_weight = model.prefix(inputs), model.prefix.decoder_weight
    torch.stack(model.suffix(inputs, hidden_states, decoder_weight)).sum().backward()
    model.suffix.zero_grad()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unpadded")
    parser.add_argument("store", type=Path)
    parser.add_argument("--format", default="nsp", choices=list(OBJECTIVES))
    parser.add_argument("--seq-length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="instances in the micro-batch")
    parser.add_argument("--sizes", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--frozen", type=int, default=0, help="frozen layers")
    parser.add_argument("--compile", action="store_true", help="time compiled parts as well")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    all_fields = micro_batches(options)
    figures = vars(options) | {"store": str(options.store)} | shares(all_fields, options.sizes)
    padded = all_fields[0]
    unpadded = padded | places_to_run(padded, MaskedLM.grids, options.sizes)
    model = model_of(options, device)
    steps = {
        "padded": partial(step_of, model, padded, device),
        "unpadded": partial(step_of, model, unpadded, device),
    }
    if options.compile:
        compiled = model_of(options, device)
        compiled.compile()
        steps["unpadded, compiled"] = partial(step_of, compiled, unpadded, device)
    seconds = medians(
        {name: partial(seconds_of, step, device) for name, step in steps.items()}, options.repeats
    )
    speed = {name: seconds["padded"] / value for name, value in seconds.items()}
    figures |= {"seconds": seconds, "speed_against_padded": speed}
    for name, value in figures.items():
        print(f"{name}: {value}")
    record.write("unpadded", ["benchmarks.unpadded", *sys.argv[1:]], figures, device=device,
                 packages=("torch", "transformers"))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
