"""What each key that makes steps cheaper gives: seconds of a stage's step, one key changed at a time.

    python -m benchmarks.levers --model tiny|base|large [--stages K ...] [--device cpu|cuda] [--batch N]
                                [--micro-batch N] [--seq-length N] [--repeats N] [--store STORE] [--write]
    python -m benchmarks.levers --run RUN [--stages K ...] ...

The stages are those of four and a joint one, which is the fifth, of a new model; or those of a run, with its recipe and
the weights that the stage began with. All variants of a stage are in one process and take turns. For those that round otherwise
in evaluation too, the loss of one batch without dropout stands beside the time. That the others compute what the plain step does is
for tests to show (tests/unit/test_feed.py, tests/distributed/test_levers.py).

`int8` isn't a key of a recipe: the frozen layers' matrices in 8 bits, their inputs quantized as they come
(`torch.ops.quantized`), on a CPU. `--write` writes a dated JSON to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import record
from benchmarks.our_step import OurStep
from benchmarks.peers import BATCHES, recipe_of
from benchmarks.turns import medians, seconds_of
from mslt_ds.batches import Batches
from mslt_ds.data.store import TokenStore
from mslt_ds.disk.model_folder import load_weights
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.world import World, choose_device, join, leave
from mslt_ds.errors import MsltError, RecipeError, report
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.plan.stages import Stage
from mslt_ds.planning.calibrate import make_up_store
from mslt_ds.recipe.loading import Recipe, load_recipe
from mslt_ds.state import TrainingState, Weights

LEVERS = {
    "unpadded: off": ["train.unpadded='off'"],
    "compile: on": ["train.compile='on'"],
    "without dropout": ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"],
}
PREFIX_LEVERS = {
    "prefix_micro_batch_size: auto": ["train.prefix_micro_batch_size=auto"],
    "prefix_ahead: on": ["train.prefix_ahead='on'"],
    "prefix_precision: bf16": ["train.prefix_precision=bf16"],
    "frozen_dropout: on": ["train.frozen_dropout='on'"],
}
GPU_LEVERS = {"prefix_graph: on": ["train.prefix_graph='on'"]}
INT8 = "int8"
PLAIN = "as it is"
WITH_LOSS = (PLAIN, "unpadded: off", "prefix_precision: bf16", INT8)
_WORLD = World(rank=0, world_size=1, local_rank=0)


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, a scale for each output, and inputs quantized as they come."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scales = weight.abs().amax(1).double() / 127
        quantized = torch.quantize_per_channel(
            weight, scales, torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8
        )
        self._packed = torch.ops.quantized.linear_prepack(quantized, linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        # With the whole range, sums of products overflow on processors without VNNI.
        return torch.ops.quantized.linear_dynamic(states, self._packed, True)


def in_int8(module: nn.Module) -> None:
    """Replace every linear layer below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            in_int8(child)


def recipe_with(
    options: argparse.Namespace, store: TokenStore | None, device: torch.device, changes: list[str]
) -> Recipe:
    """Of the run, or of a new model on the text of `store`, with the lever's `changes`."""
    if store is None:
        return load_recipe(options.run / "recipe.yaml", [*options.set, *changes])
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    own = argparse.Namespace(
        **{
            **vars(options),
            "set": [f"train.micro_batch_size={options.micro_batch}", *options.set, *changes],
        }
    )
    return recipe_of(own, store, "bf16" if half else "fp32", device)


def weights_of(options: argparse.Namespace, recipe: Recipe, stage: Stage) -> Weights:
    config = recipe.config
    assert config.model.vocab_size is not None
    hf_config = FAMILIES[config.model.family].hf_config(
        config.model, stage.depth, config.model.vocab_size, config.data.objective.heads
    )
    if options.run is None:
        return fresh_weights(hf_config, seed=config.seed)
    return load_weights(options.run / "stages" / str(stage.index) / "start", hf_config)


def measure_stage(
    options: argparse.Namespace,
    recipe_of_lever: Callable[[list[str]], Recipe],
    index: int,
    device: torch.device,
) -> dict[str, Any]:
    """Seconds of every variant of the stage, and the loss of one batch of those in WITH_LOSS."""
    plain = recipe_of_lever([])
    stage = plain.plan.stages[index - 1]
    weights, meter = weights_of(options, plain, stage), TrafficMeter()
    variants: dict[str, list[str]] = (
        {PLAIN: []} | LEVERS | ({} if stage.train_embeddings else PREFIX_LEVERS)
    )
    if not stage.train_embeddings:
        variants |= {INT8: []} if device.type == "cpu" else GPU_LEVERS
    runs: dict[str, Callable[[], float]] = {}
    losses: dict[str, float] = {}
    with ExitStack() as stack:
        for name, changes in variants.items():
            recipe = recipe_of_lever(changes)
            store = TokenStore.open(Path(recipe.config.data.path))
            data = Batches(recipe, _WORLD, device, store, None)
            batches = list(
                islice(data.training(recipe.plan.stages[index - 1], TrainingState(0)), BATCHES)
            )
            step = OurStep(recipe, recipe.plan.stages[index - 1], weights, batches, meter, device)
            stack.callback(step.engine.close)
            if name == INT8:
                assert step.engine.model.prefix is not None
                in_int8(step.engine.model.prefix)
            if name in WITH_LOSS:
                losses[name] = step.loss(batches[0])
            run = partial(step.run, options.steps)
            runs[name] = lambda run=run: seconds_of(run, device) / options.steps
        seconds = medians(runs, options.repeats)
    return {"frozen_layers": stage.frozen_layers, "trainable_layers": stage.trainable_layers,
            "seconds": seconds, "loss": losses}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.levers")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", choices=("tiny", "base", "large"))
    which.add_argument("--run", type=Path, help="folder of a run, instead of a made-up model")
    parser.add_argument("--stages", type=int, nargs="+", default=[4, 5], metavar="K")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch", type=int, default=16, help="instances in a step")
    parser.add_argument("--micro-batch", type=int, default=8, help="instances in a micro-batch")
    parser.add_argument("--seq-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1, help="of a turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", type=Path, help="token store with real text (default: made up)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="recipe key"
    )
    parser.add_argument("--write", action="store_true", help="write to benchmarks/results")
    options = parser.parse_args()
    try:
        return _measure(options)
    except MsltError as error:
        return report(error)


def _measure(options: argparse.Namespace) -> int:
    device = choose_device(options.device, _WORLD)
    torch._dynamo.config.recompile_limit = 64
    join(_WORLD, device, os.environ)
    with tempfile.TemporaryDirectory() as folder:
        store = (
            None if options.run else TokenStore.open(options.store or make_up_store(Path(folder)))
        )
        recipe_of_lever = partial(recipe_with, options, store, device)
        plain = recipe_of_lever([])
        number = len(plain.plan.stages)
        if wrong := [k for k in options.stages if not 1 <= k <= number]:
            raise RecipeError(f"--stages {wrong[0]}: the plan has stages 1 to {number}")
        stages = {k: measure_stage(options, recipe_of_lever, k, device) for k in options.stages}
    leave()
    for index, found in stages.items():
        plain_seconds, plain_loss = found["seconds"][PLAIN], found["loss"][PLAIN]
        print(
            f"\nstage {index}: {found['frozen_layers']} layers frozen, {found['trainable_layers']} trained\n"
        )
        print("| variant | seconds | times as fast | loss - plain loss |\n|---|---|---|---|")
        for name, seconds in found["seconds"].items():
            loss = found["loss"].get(name)
            change = "–" if loss is None else f"{loss - plain_loss:+.2g}"
            print(f"| `{name}` | {seconds:.4g} | {plain_seconds / seconds:.2f} | {change} |")
    if options.write:
        kept = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        del kept["device"]  # the record names what was chosen
        kept["precision"] = plain.config.train.precision
        record.write("levers", ["benchmarks.levers", *sys.argv[1:]], kept | {"of_stages": stages},
                     device=device, packages=("torch", "transformers", "deepspeed"))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
