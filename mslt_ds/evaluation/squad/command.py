"""`mslt-ds evaluate squad`: fine-tune and score, or score existing predictions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mslt_ds import paths
from mslt_ds.distributed.world import World
from mslt_ds.errors import DataError, RecipeError
from mslt_ds.evaluation import job
from mslt_ds.evaluation.batches import sample
from mslt_ds.evaluation.encoder import Encoder
from mslt_ds.evaluation.execution import device_for
from mslt_ds.evaluation.recipe import load
from mslt_ds.evaluation.squad import score
from mslt_ds.evaluation.squad.data import check_answers, read_questions
from mslt_ds.evaluation.squad.recipe import SQUAD_DEFAULTS, SquadRecipe
from mslt_ds.evaluation.squad.runs import SquadRunner
from mslt_ds.evaluation.text_files import read_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", required=True, choices=list(SQUAD_DEFAULTS), help="of SQuAD")
    parser.add_argument("--model", type=paths.path, metavar="DIR", help="a Hugging Face folder")
    parser.add_argument("--train", type=paths.path, metavar="FILE", help="SQuAD JSON (or .xz)")
    parser.add_argument("--dev", type=paths.path, metavar="FILE", help="SQuAD JSON (or .xz)")
    job.add_arguments(parser, output_required=False)
    scoring = parser.add_argument_group("scoring only")
    scoring.add_argument(
        "--score", nargs=2, type=paths.path, metavar=("PREDICTIONS", "DEV"),
        help="only score predictions (id to answer, JSON) for DEV",
    )  # fmt: skip
    scoring.add_argument("--json", action="store_true", help="print JSON instead of lines")
    scoring.add_argument(
        "--na-probs", type=paths.path, metavar="FILE",
        help="2.0: id to probability (or score) of no answer, JSON; adds the best thresholds",
    )  # fmt: skip
    scoring.add_argument(
        "--na-prob-threshold", type=float, default=1.0, metavar="X",
        help="2.0: no answer where the probability is above X (default: 1.0)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    if arguments.score is not None:
        _score(arguments)
        return 0
    missing = [
        f"--{name}"
        for name in ("model", "train", "dev", "output")
        if getattr(arguments, name) is None
    ]
    if missing:
        raise RecipeError(f"{', '.join(missing)}: missing; or give --score PREDICTIONS DEV alone")
    job.run(arguments, build)
    return 0


def build(arguments: argparse.Namespace, world: World) -> SquadRunner:
    """A runner whose recipe, model and data have been checked."""
    version = arguments.version
    recipe = load(SquadRecipe, arguments.config, arguments.overrides, SQUAD_DEFAULTS[version])
    if recipe.version != version:
        raise RecipeError(f"version: {recipe.version} in the recipe, but --version {version}")
    encoder = Encoder.open(arguments.model)
    device = device_for(recipe.device, world, recipe.precision)
    train = read_questions(arguments.train, version)
    check_answers(arguments.train, train)
    train = [train[row] for row in sample(len(train), recipe.train_examples, seed=0)]
    dev = read_questions(arguments.dev, version)
    return SquadRunner(encoder, recipe, device, train, dev, arguments.output)


def _score(arguments: argparse.Namespace) -> None:
    path, dev = arguments.score
    if arguments.na_probs is not None and arguments.version == "1.1":
        raise RecipeError("--na-probs: version 1.1 has an answer to every question; --version 2.0")
    questions = read_questions(dev, arguments.version)
    predictions = _read_by_id(path, str, "an answer, a text")
    no_answer = None
    if arguments.na_probs is not None:
        no_answer = _read_by_id(arguments.na_probs, (int, float), "a number")
        lacking = [question.id for question in questions if question.id not in no_answer]
        if lacking:
            raise DataError(
                f"{arguments.na_probs}: no number for {len(lacking)} questions, such as {lacking[0]}"
            )
    figures: dict[str, float] = score.report(
        questions, predictions, arguments.version, no_answer, arguments.na_prob_threshold
    )
    ids = {question.id for question in questions}
    figures["without_prediction"] = len(ids - predictions.keys())
    figures["unknown_predictions"] = len(predictions.keys() - ids)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:20} {value:10,.3f}" if isinstance(value, float) else f"{name:20} {value:10,}")


def _read_by_id(path: Path, kind: Any, what: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: expected an object of question ids, found {type(content).__name__}"
        )
    for id_, value in content.items():
        if not isinstance(value, kind) or value != value:  # NaN, which JSON readers let pass
            raise DataError(f"{path}: question {id_}: {value!r}; it has to be {what}")
    return content
