"""From a YAML file to a checked recipe: configuration, plan and DeepSpeed settings.

Every problem is reported at once, a line each, before a model is built or a process group is
joined: wrong types, unknown keys, keys that the rest of the recipe leaves without effect, and
sections that contradict each other. The plan is built and the DeepSpeed JSON is read here, once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mslt_ds import paths
from mslt_ds.config import strict_yaml
from mslt_ds.config.messages import describe
from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import RecipeError
from mslt_ds.plan.methods import build_plan
from mslt_ds.plan.stages import Plan
from mslt_ds.recipe import deepspeed_json, rules


@dataclass(frozen=True)
class Recipe:
    """A checked recipe with its plan. `parse_recipe` and `load_recipe` make it."""

    config: RunConfig
    plan: Plan
    deepspeed: dict[str, Any]
    """The DeepSpeed JSON that `deepspeed.config` names, as it was read."""

    @property
    def zero_stage(self) -> int:
        return deepspeed_json.zero_stage(self.deepspeed)

    def warnings(self) -> list[str]:
        """What the plan may do and is known to harm, a line each."""
        return rules.plan_warnings(self.config, self.plan)

    def check_world(self, world_size: int) -> None:
        """RecipeError if `world_size` ranks can't share the global batch of each stage evenly."""
        _raise(rules.world_problems(self.config, self.plan, self.deepspeed, world_size))

    def check_environment(self, device_type: str) -> None:
        """RecipeError if the device ("cpu" or "cuda") doesn't support what the recipe asks for."""
        _raise(rules.device_problems(self.config, device_type))

    def check_files(self) -> None:
        """RecipeError if a token store that the recipe names doesn't exist."""
        _raise(rules.file_problems(self.config))


def parse_recipe(recipe: Mapping[str, Any]) -> Recipe:
    """A nested mapping of keys as a checked recipe. RecipeError lists all problems."""
    try:
        config = RunConfig.model_validate(dict(recipe))
    except ValidationError as error:
        raise RecipeError("\n".join(describe(error, RunConfig))) from None
    problems = rules.recipe_problems(config)
    plan, deepspeed = None, None
    try:
        plan = build_plan(config)
    except RecipeError as error:
        problems += str(error).splitlines()
    else:
        problems += rules.plan_problems(config, plan)
        try:
            deepspeed = deepspeed_json.read(config.deepspeed.config)
        except RecipeError as error:
            problems.append(str(error))
        else:
            problems += deepspeed_json.problems(config, plan, deepspeed)
    _raise(problems)
    assert plan is not None and deepspeed is not None
    return Recipe(config, plan, deepspeed)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe file at `path` with `--set key=value` overrides, checked."""
    return parse_recipe(strict_yaml.apply_overrides(strict_yaml.read_mapping(path), overrides))


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config` and `--set`, which give `load_recipe` its arguments, for every command that takes a recipe."""
    parser.add_argument(
        "--config", type=paths.path, required=True, metavar="RECIPE", help="recipe, a YAML file"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override one key of the recipe, e.g. --set optimizer.learning_rate=1e-3",
    )


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise RecipeError("\n".join(problems))
