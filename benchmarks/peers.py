"""Seconds of a training step beside Hugging Face's Trainer: the same model, instances and batch size.

    python -m benchmarks.peers --model tiny|base|large [--device cpu|cuda] [--batch N] [--seq-length N]
                               [--repeats N] [--store STORE] [--set KEY=VALUE ...] [--json] [--write]

`hf` is the Trainer at its best: bf16 where the device has it, fused AdamW, batches of similar lengths padded to
their longest and, for base and large, torch_compile. `hf_docs` is the Trainer as its documentation shows it: fp32
and shuffled batches, padded to their longest. Against them stand the engine's steps: `full`, each stage of four, and
`joint`, with AdamW in the precision of `hf`. All are in one process, measured in turns; the Trainer's own loop
runs in a thread that is let go for a number of steps.

Before the time is taken, the loss of both is compared on the same batch, without dropout (`same_loss`). `staged_vs_full`
and `staged_vs_hf` say how many times faster a whole run is in which the joint stage has 20 % or 10 % of the steps,
`staged_vs_full_by_flops` what the operations allow. The instances are of made-up text or, with --store, of a token
store; their padding is told. --set gives the engine's steps other values of a recipe's keys, such as
train.compile=on. --write writes a dated JSON to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from benchmarks import record
from benchmarks.our_step import OurStep
from benchmarks.turns import medians, seconds_of
from mslt_ds.batches import Batches
from mslt_ds.data.loader import GlobalBatch
from mslt_ds.data.store import TokenStore
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.world import World, choose_device, device_name, join, leave
from mslt_ds.errors import MsltError, report
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights
from mslt_ds.plan.flops import instance_flops
from mslt_ds.plan.hardware import gpu_of_device
from mslt_ds.planning.calibrate import make_up_store
from mslt_ds.recipe.loading import Recipe, load_recipe
from mslt_ds.state import TrainingState, Weights

TINY = [
    f"model.{key}={value}"
    for key, value in {
        "num_hidden_layers": 4,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    }.items()
]
BATCHES = 8  # different ones, which all candidates go through again and again
JOINT_SHARES = (0.2, 0.1)
_IGNORED = -100  # the label of a position without one, for Hugging Face's loss


class TheirSteps(TrainerCallback):
    """A Trainer whose loop, in a thread of its own, waits before each step until it's let go."""

    def __init__(self, model: PreTrainedModel, instances: Any, **arguments: Any) -> None:
        self._permits, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._ends = False
        self._error: BaseException | None = None
        trainer = Trainer(
            model,
            TrainingArguments(
                max_steps=10**9,
                max_grad_norm=1.0,
                lr_scheduler_type="constant",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                **arguments,
            ),
            train_dataset=instances,
            data_collator=padded,
            callbacks=[self],
        )
        self._trainer = trainer
        self._thread = threading.Thread(target=self._train, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._wait()

    def _train(self) -> None:
        try:
            self._trainer.train()
        except BaseException as error:
            self._error = error
        finally:
            self._arrived.release(10**6)

    def _wait(self) -> None:
        self._arrived.acquire()
        if self._error is not None:
            raise RuntimeError("Hugging Face's Trainer failed") from self._error

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._arrived.release()
        self._permits.acquire()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = self._ends

    def run(self, steps: int) -> None:
        """So many steps, and the loading of the next step's batch instead of the first one's."""
        for _ in range(steps):
            self._permits.release()
            self._wait()

    def close(self) -> None:
        self._ends = True
        self._permits.release()
        self._thread.join()


def their_instances(batches: list[GlobalBatch]) -> list[dict[str, Any]]:
    """The instances as Hugging Face's model takes them, without padding."""
    found = []
    for batch in batches:
        fields = batch.micro_batches[0].fields
        labels = torch.full_like(fields["input_ids"], _IGNORED)
        used = fields["masked_weights"] > 0
        rows = torch.arange(len(labels))[:, None].expand_as(used)[used]
        labels[rows, fields["masked_positions"][used]] = fields["masked_labels"][used]
        for row, length in enumerate(fields["attention_mask"].sum(1).tolist()):
            found.append(
                {
                    "input_ids": fields["input_ids"][row, :length],
                    "token_type_ids": fields["token_type_ids"][row, :length],
                    "labels": labels[row, :length],
                    "next_sentence_label": fields["pair_labels"][row],
                }
            )
    return found


def padded(instances: list[dict[str, Any]]) -> dict[str, Tensor]:
    """One batch, padded to its longest instance, as DataCollatorForLanguageModeling does."""
    longest = max(len(instance["input_ids"]) for instance in instances)

    def column(name: str, padding: int) -> Tensor:
        rows = [
            torch.nn.functional.pad(i[name], (0, longest - len(i[name])), value=padding)
            for i in instances
        ]
        return torch.stack(rows)

    lengths = torch.tensor([len(instance["input_ids"]) for instance in instances])
    return {
        "input_ids": column("input_ids", 0),
        "token_type_ids": column("token_type_ids", 0),
        "labels": column("labels", _IGNORED),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "next_sentence_label": torch.stack([i["next_sentence_label"] for i in instances]),
    }


@torch.no_grad()
def their_loss(model: PreTrainedModel, batch: GlobalBatch, device: torch.device) -> float:
    """Of the batch, without dropout."""
    inputs = {name: t.to(device) for name, t in padded(their_instances([batch])).items()}
    module: Any = model.to(device).eval()  # pyright: ignore[reportArgumentType]
    loss = float(module(**inputs).loss)
    model.train()
    return loss


def their_model(hf_config: Any, weights: Weights) -> PreTrainedModel:
    model = transformers.BertForPreTraining(hf_config)
    model.load_state_dict({name: t.clone() for name, t in weights.items()}, strict=False)
    model.tie_weights()
    return model


def recipe_of(
    options: argparse.Namespace, store: TokenStore, precision: str, device: torch.device
) -> Recipe:
    """Four stages and a joint stage of the model, one micro-batch a step."""
    size = "large" if options.model == "large" else "base"
    length, batch = options.seq_length, options.batch
    return load_recipe(
        Path(__file__).parents[1] / "configs" / f"bert_{size}_mslt.yaml",
        [
            f"model.vocab_size={max(2_000 if options.model == 'tiny' else 30_522, store.vocab_size)}",
            *(TINY if options.model == "tiny" else []),
            "plan={method: mslt, num_stages: 4, steps_per_stage: 1000, joint_steps: 1000}",
            f"data={{path: {store.path}, seq_length: {length}, num_workers: 0}}",
            f"train={{global_batch_size: {batch}, micro_batch_size: {batch}, precision: {precision}, "
            f"device: {device.type}}}",
            "optimizer={name: adamw, learning_rate: 1e-4}",
            "schedule={name: constant}",
            *options.set,
        ],
    )


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures, as --json prints them."""
    world = World(rank=0, world_size=1, local_rank=0)
    device = choose_device(options.device, world)
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    precision = "bf16" if half else "fp32"
    # Each stage's parts are versions of the same code to torch.compile, and it keeps few.
    torch._dynamo.config.recompile_limit = 64
    store = TokenStore.open(options.store or make_up_store(folder))
    recipe = recipe_of(options, store, precision, device)
    config, stages = recipe.config, recipe.plan.stages
    vocab_size = config.model.vocab_size
    assert vocab_size is not None
    made = Batches(recipe, world, device, store, None).training(stages[-1], TrainingState(0))
    batches = list(islice(made, BATCHES))
    tokens = sum(batch.count_tokens() for batch in batches)
    filled = tokens / (len(batches) * options.batch * options.seq_length)

    hf_config = FAMILIES["bert"].hf_config(
        config.model, config.model.num_hidden_layers, vocab_size, config.data.objective.heads
    )
    weights = fresh_weights(hf_config, seed=config.seed)
    with ExitStack() as stack:
        common = {
            "per_device_train_batch_size": options.batch,
            "learning_rate": config.optimizer.learning_rate,
            "use_cpu": device.type == "cpu",
            "output_dir": str(folder / "trainer"),
            "optim": "adamw_torch_fused",
        }
        instances = their_instances(batches)
        compiles = options.model != "tiny"
        # Made before the process group is joined: they would train in it.
        best, docs = their_model(hf_config, weights), their_model(hf_config, weights)
        theirs = {
            "hf": TheirSteps(
                best, instances, **common, bf16=half, torch_compile=compiles,
                train_sampling_strategy="group_by_length",
            ),
            "hf_docs": TheirSteps(docs, instances, **common),
        }  # fmt: skip
        losses = [their_loss(docs, batches[0], device)]
        join(world, device, os.environ)
        stack.callback(leave)
        meter = TrafficMeter()
        ours: dict[str, OurStep] = {}
        for stage in stages:
            name = "full" if stage is stages[-1] else f"stage_{stage.index}"
            ours[name] = OurStep(recipe, stage, weights, batches, meter, device)
            stack.callback(ours[name].engine.close)
        losses.append(ours["full"].loss(batches[0]))
        for steps in theirs.values():
            steps.start()
            stack.callback(steps.close)
        count = {"tiny": 3, "base": 1, "large": 1}[options.model] * (
            10 if device.type == "cuda" else 1
        )
        runs: dict[str, Callable[[int], None]] = {name: s.run for name, s in theirs.items()}
        runs |= {name: ours[name].run for name in ("full", *sorted(ours.keys() - {"full"}))}
        runs["joint"] = ours["full"].run

        def timed(run: Callable[[int], None]) -> Callable[[], float]:
            return lambda: seconds_of(lambda: run(count), device) / count

        seconds = medians({name: timed(run) for name, run in runs.items()}, options.repeats)
    flops = {
        name: instance_flops(config, stage, vocab_size, filled).total
        for name, stage in zip([f"stage_{s.index}" for s in stages[:-1]] + ["joint"], stages, strict=True)
    }  # fmt: skip
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    figures: dict[str, Any] = {
        "model": options.model,
        "batch": options.batch,
        "seq_length": options.seq_length,
        "precision": precision,
        "padding": 1 - filled,
        "hf_compiled": options.model != "tiny",
        "text": "made up" if options.store is None else options.store.name,
        "set": options.set,
        "same_loss": math.isclose(*losses, rel_tol=tolerance),
        "loss": dict(zip(("hf", "full"), losses, strict=True)),
        "seconds": seconds,
        "full_vs_hf": seconds["hf"] / seconds["full"],
        "staged_vs_full": _by_share(lambda j: seconds["full"] / _staged(seconds, j)),
        "staged_vs_hf": _by_share(lambda j: seconds["hf"] / _staged(seconds, j)),
        "staged_vs_full_by_flops": _by_share(lambda j: flops["joint"] / _staged(flops, j)),
    }
    gpu = gpu_of_device(device_name(device)) if device.type == "cuda" else None
    if gpu is not None:
        figures["mfu"] = {
            name: flops.get(name, flops["joint"]) * options.batch / value / gpu.peak(precision)
            for name, value in seconds.items()
            if name not in theirs
        }
    return figures


def _staged(of_step: dict[str, float], joint_share: float) -> float:
    """The mean over the steps of a whole run."""
    stages = [value for name, value in of_step.items() if name.startswith("stage_")]
    return (1 - joint_share) * sum(stages) / len(stages) + joint_share * of_step["joint"]


def _by_share(ratio: Callable[[float], float]) -> dict[str, float]:
    return {f"{share:g}": ratio(share) for share in JOINT_SHARES}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Time steps beside Hugging Face's Trainer."
    )
    parser.add_argument("--model", choices=("tiny", "base", "large"), required=True)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch", type=int, help="instances in a step (default: 16; 32 on a GPU)")
    parser.add_argument("--seq-length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", type=Path, help="token store with real text (default: made up)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="recipe key"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--write", action="store_true", help="write the result to benchmarks/results"
    )
    options = parser.parse_args(arguments)
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    options.batch = options.batch or (32 if on_gpu else 16)
    try:
        # Standard output is for the result alone.
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            figures = measure(options, Path(folder))
    except MsltError as error:
        return report(error)
    if options.write:
        with redirect_stdout(sys.stderr):
            record.write(
                f"peers_{options.model}_{'cuda' if on_gpu else 'cpu'}",
                ["benchmarks.peers", *given],
                figures,
                device=torch.device("cuda" if on_gpu else "cpu"),
                packages=("torch", "transformers", "accelerate", "deepspeed"),
            )
    if options.json:
        print(json.dumps(figures, indent=1))
        return 0
    print(
        f"same loss: {figures['same_loss']}; {figures['padding']:.1%} padding; {figures['precision']}"
    )
    print(f"{'step':10} {'seconds':>10} {'times hf':>9}")
    for name, seconds in figures["seconds"].items():
        print(f"{name:10} {seconds:10.4f} {figures['seconds']['hf'] / seconds:9.2f}")
    for name in ("staged_vs_hf", "staged_vs_full", "staged_vs_full_by_flops"):
        ratios = ", ".join(f"{ratio:.2f} ({share} joint)" for share, ratio in figures[name].items())
        print(f"{name}: {ratios}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
