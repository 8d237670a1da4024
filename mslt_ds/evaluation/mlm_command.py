"""`mslt-ds evaluate mlm`: held-out loss and perplexity of a masked language model, by source."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mslt_ds import paths
from mslt_ds.atomic import replace_text
from mslt_ds.data.store import TokenStore
from mslt_ds.disk.model_folder import tokenizer_difference
from mslt_ds.distributed.world import World, choose_device, device_name
from mslt_ds.errors import CheckpointError, DivergenceError, EnvironmentProblem, RecipeError
from mslt_ds.evaluation import mlm
from mslt_ds.evaluation.encoder import Encoder
from mslt_ds.evaluation.progress import GridProgress

RESULTS, TABLE = "mlm.json", "mlm.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=paths.path, required=True, metavar="DIR",
        help="a Hugging Face folder of a model with a masked-LM head",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=paths.path, required=True, metavar="STORE",
        help="a token store of text that the model wasn't trained on, by the model's tokenizer",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=paths.path, metavar="DIR", help=f"folder for {RESULTS} and {TABLE}"
    )
    parser.add_argument(
        "--seq-length", type=int, metavar="N",
        help="tokens of an instance (default: 512, or what the model has positions for)",
    )  # fmt: skip
    parser.add_argument(
        "--masked-lm-prob", type=float, default=0.15, metavar="P",
        help="share of the tokens to predict (default: 0.15)",
    )  # fmt: skip
    parser.add_argument(
        "--instances", type=int, metavar="N", help="so many, drawn from all (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of masks and drawing (default: 0)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    store = TokenStore.open(arguments.data)
    encoder = Encoder.open(arguments.model)
    if difference := tokenizer_difference(encoder.path, store.tokenizer_dir):
        raise CheckpointError(
            f"--model: {encoder.path}: {difference} of --data {store.path}; prepare the held-out text "
            f"with --tokenizer {encoder.path}"
        )
    device = choose_device(arguments.device, World(0, 1, 0), arguments.precision)
    model = mlm.build(encoder)
    length = mlm.sequence_length(model, encoder, arguments.seq_length)
    options = mlm.options_of(length, arguments.masked_lm_prob)
    text = mlm.MaskedText.of(store, options, arguments.seed, arguments.instances)
    found = _evaluate(model.to(device), text, arguments)
    content = {
        "model": str(encoder.path),
        "digest": encoder.digest,
        "data": str(store.path),
        "data_digest": store.digest,
        "seq_length": length,
        "masked_lm_prob": arguments.masked_lm_prob,
        "input_format": options.input_format,
        "seed": arguments.seed,
        "precision": arguments.precision,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "sources": [row.as_json() for row in found[:-1]],
        "all": found[-1].as_json(),
    }
    shown = mlm.table(found)
    print(shown, end="")
    if arguments.output is not None:
        _write(arguments.output, content, _heading(content) + shown)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """RecipeError for the first option that is out of range."""
    for name in ("seq_length", "instances", "batch_size"):
        value, least = getattr(arguments, name), 8 if name == "seq_length" else 1
        if value is not None and value < least:
            raise RecipeError(f"--{name.replace('_', '-')}: {value}; it has to be at least {least}")
    if not 0 < arguments.masked_lm_prob <= 1:
        raise RecipeError(
            f"--masked-lm-prob: {arguments.masked_lm_prob}; it has to be above 0 and at most 1"
        )
    if not 0 <= arguments.seed < 2**32:
        raise RecipeError(f"--seed: {arguments.seed}; it has to be from 0 to {2**32 - 1}")


def _evaluate(
    model: torch.nn.Module, text: mlm.MaskedText, arguments: argparse.Namespace
) -> list[mlm.HeldOut]:
    losses, counts = np.zeros(len(text.rows)), np.zeros(len(text.rows), np.int64)
    done = 0
    with GridProgress(1, len(losses)) as progress:
        for chosen, batch in text.batches(arguments.batch_size):
            found = mlm.prediction_losses(model, batch, arguments.precision).numpy()
            if not np.isfinite(found).all():
                raise DivergenceError(
                    f"--model: {arguments.model}: its loss isn't finite; try --precision fp32, or "
                    "check the weights"
                )
            losses[chosen] = found
            counts[chosen] = batch["masked_weights"].sum(1).numpy()
            done += len(chosen)
            loss = losses.sum() / max(1, counts.sum())
            progress.step("held-out loss", done / len(losses), len(losses), f"loss {loss:.3f}")
    return mlm.by_source(text, losses, counts)


def _heading(content: dict[str, Any]) -> str:
    return (
        f"Model: {content['model']}  \n"
        f"Data: {content['data']}, sequences of up to {content['seq_length']} tokens, "
        f"{content['masked_lm_prob']:.0%} masked, seed {content['seed']}  \n"
        f"Device: {content['device']}, {content['precision']}\n\n"
    )


def _write(output: Path, content: dict[str, Any], shown: str) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        replace_text(output / TABLE, shown)
        replace_text(output / RESULTS, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise EnvironmentProblem(
            f"--output: {output}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    print(f"written to {output / RESULTS} and {output / TABLE}")
