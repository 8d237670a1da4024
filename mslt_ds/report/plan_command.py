"""`mslt-ds plan`: prints a recipe's stages and their cost, without loading torch."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from mslt_ds.config.sections import RunConfig
from mslt_ds.data.store import read_manifest
from mslt_ds.errors import RecipeError
from mslt_ds.plan import cost
from mslt_ds.recipe.loading import add_recipe_arguments, load_recipe
from mslt_ds.report.plan_table import print_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mslt-ds plan`."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--world-size",
        metavar="N",
        help="ranks to plan for (default: WORLD_SIZE of the environment, or 1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan as a table or as JSON."""
    recipe = load_recipe(arguments.config, arguments.overrides)
    config = recipe.config
    world_size = _world_size(arguments.world_size)
    recipe.check_world(world_size)
    vocab_size = _vocab_size(config)
    assumed = vocab_size is None
    if vocab_size is None:
        vocab_size = cost.ASSUMED_VOCAB_SIZE
    description = cost.describe_plan(
        config,
        recipe.plan,
        vocab_size=vocab_size,
        world_size=world_size,
        zero_stage=recipe.zero_stage,
    )
    if arguments.json:
        print(json.dumps(description, indent=1))
    else:
        print_plan(description, vocab_size_assumed=assumed)
    return 0


def _vocab_size(config: RunConfig) -> int | None:
    """From the recipe or from its token store; None if neither has it."""
    if config.model.vocab_size is not None or not os.path.exists(config.data.path):
        return config.model.vocab_size
    return read_manifest(Path(config.data.path))["vocab_size"]


def _world_size(given: str | None) -> int:
    text = os.environ.get("WORLD_SIZE", "1") if given is None else given
    if not text.isdecimal() or int(text) < 1:
        place = "WORLD_SIZE" if given is None else "--world-size"
        raise RecipeError(f"{place}: {text}; it has to be a whole number of at least 1")
    return int(text)
