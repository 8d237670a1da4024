"""`mslt-ds plan`: prints a recipe's stages and their cost, without loading torch.

With `--gpus` it also prints hours, memory and money on that hardware, by arithmetic; with `--calibrate`
by a short run of every stage on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mslt_ds.config.sections import RunConfig
from mslt_ds.data.store import read_manifest
from mslt_ds.errors import RecipeError
from mslt_ds.plan import cost, hardware
from mslt_ds.plan.hours import Cluster, Model, nodes, scaled_steps, with_hours
from mslt_ds.planning.calibrate import Calibration, calibrate
from mslt_ds.recipe.loading import Recipe, add_recipe_arguments, load_recipe
from mslt_ds.report.plan_table import print_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mslt-ds plan`."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--world-size",
        metavar="N",
        help="ranks to plan for (default: --gpus, WORLD_SIZE of the environment, or 1)",
    )
    parser.add_argument("--gpus", metavar="N", help="GPUs to compute hours, memory and cost for")
    parser.add_argument("--gpu", metavar="NAME", help=f"their kind: {', '.join(hardware.GPUS)}")
    parser.add_argument(
        "--network",
        metavar="SPEED",
        help=f"a node's bandwidth, as 100gbit; a node has {hardware.GPUS_PER_NODE} GPUs",
    )
    parser.add_argument("--price", type=float, metavar="P", help="of a GPU for an hour")
    parser.add_argument(
        "--calibrate",
        nargs="?",
        type=int,
        const=12,
        metavar="STEPS",
        help="measure so many steps of every stage on this machine (default: 12), with --gpus N in as "
        "many processes, and compute hours from them",
    )
    parser.add_argument(
        "--hours", type=float, metavar="H", help="scale the recipe's steps to fit H hours"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan as a table or as JSON."""
    request = _Request.of(arguments)
    recipe = load_recipe(arguments.config, arguments.overrides)
    description = request.describe(recipe)
    if arguments.hours is not None:
        description = _fitted(request, recipe, description, arguments)
    if arguments.json:
        print(json.dumps(description, indent=1))
    else:
        print_plan(description, vocab_size_assumed=_vocab_size(recipe.config) is None)
        for warning in recipe.warnings():
            print(f"warning: {warning}")
    return 0


def _fitted(
    request: _Request, recipe: Recipe, description: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The description of the recipe with as many steps as fit `--hours`."""
    hours = arguments.hours
    steps = description["total_steps"] * description["seconds_per_step"] / 3600
    rest = description["hours"] - steps
    if hours <= rest:
        raise RecipeError(
            f"--hours: {hours:g}; starting, stage changes and evaluation alone take {rest:.3g}"
        )
    factor = (hours - rest) / steps
    while True:
        overrides = scaled_steps(recipe.config, factor)
        fitted = load_recipe(arguments.config, [*arguments.overrides, *overrides])
        found = request.describe(fitted)
        if found["hours"] <= hours:
            return found | {"fitted": {"hours": hours, "set": overrides}}
        factor *= 0.999 * hours / found["hours"]  # rounding went to the dearer stages


@dataclass
class _Request:
    """What the command line asks for beside the recipe."""

    world_size: int
    cluster: Cluster | None
    price: float | None
    calibration_steps: int | None
    calibration: Calibration | None = None  # once it is made

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> _Request:
        """RecipeError where the options don't go together."""
        if arguments.world_size and arguments.gpus not in (None, arguments.world_size):
            raise RecipeError(
                f"--gpus: {arguments.gpus} beside --world-size {arguments.world_size}; give one"
            )
        timed = arguments.gpu is not None or arguments.calibrate is not None
        for option in ("price", "hours"):
            value = getattr(arguments, option)
            if value is not None and not timed:
                raise RecipeError(
                    f"--{option}: {value} needs --gpus with --gpu, or --calibrate, to know hours"
                )
            if value is not None and not 0 < value < float("inf"):
                raise RecipeError(f"--{option}: {value}; it has to be a number above 0")
        if arguments.calibrate is not None and arguments.calibrate < 4:
            raise RecipeError(f"--calibrate: {arguments.calibrate}; measure 4 steps or more")
        world_size = _world_size(arguments)
        return cls(
            world_size,
            _cluster(arguments, world_size),
            arguments.price,
            arguments.calibrate,
        )

    def describe(self, recipe: Recipe) -> dict[str, Any]:
        """The described plan, with hours where they are known."""
        config = recipe.config
        recipe.check_world(self.world_size)
        if self.cluster:
            self.cluster.check_precision(config)
        vocab_size = _vocab_size(config) or cost.ASSUMED_VOCAB_SIZE
        description = cost.describe_plan(
            config,
            recipe.plan,
            vocab_size=vocab_size,
            world_size=self.world_size,
            zero_stage=recipe.zero_stage,
        )
        model = Model(config, vocab_size, recipe.zero_stage)
        told: dict[str, Any] = {"gpus": self.world_size, "price": self.price}
        if self.calibration_steps is not None:
            if self.calibration is None:
                self.calibration = calibrate(
                    recipe, vocab_size, self.world_size, self.calibration_steps
                )
            measured = self.calibration
            description = with_hours(
                description, model, recipe.plan, measured.step_time(model, recipe.plan), **told,
                overhead=measured.overhead(config, recipe.plan),
            )  # fmt: skip
            return description | {"calibrated": measured.described()}
        if (cluster := self.cluster) is None:
            return description
        description = with_hours(
            description,
            model,
            recipe.plan,
            lambda stage: model.step_seconds(stage, cluster).total,
            **told,
        )
        for entry, stage in zip(description["stages"], recipe.plan.stages, strict=True):
            entry["parts"] = vars(model.step_seconds(stage, cluster))
        return description | {
            "hardware": {
                "nodes": nodes(cluster.gpus),
                "peak_flops": cluster.gpu.peak(config.train.precision),
                "utilization": cluster.utilization,
                "bandwidth": cluster.slowest_link,
                "gpu_memory": cluster.gpu.memory,
            }
        }


def _cluster(arguments: argparse.Namespace, gpus: int) -> Cluster | None:
    """The hardware that is asked for; None where no hours are."""
    if arguments.gpu is None or arguments.calibrate is not None:
        for option in ("gpu", "network"):
            if (value := getattr(arguments, option)) is not None:
                why = (
                    "--calibrate measures this machine" if arguments.calibrate else "without --gpu"
                )
                raise RecipeError(f"--{option}: {value}, but {why}; leave it out")
        if arguments.gpus is not None and arguments.calibrate is None:
            raise RecipeError(f"--gpus: {arguments.gpus} without --gpu; name their kind")
        return None
    return Cluster.named(gpus, arguments.gpu, arguments.network)


def _vocab_size(config: RunConfig) -> int | None:
    """From the recipe or from its token store; None if neither has it."""
    if config.model.vocab_size is not None or not os.path.exists(config.data.path):
        return config.model.vocab_size
    return read_manifest(Path(config.data.path))["vocab_size"]


def _world_size(arguments: argparse.Namespace) -> int:
    for place, text in (
        ("--gpus", arguments.gpus),
        ("--world-size", arguments.world_size),
        ("WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")),
    ):
        if text is None:
            continue
        if not text.isdecimal() or int(text) < 1:
            raise RecipeError(f"{place}: {text}; it has to be a whole number of at least 1")
        return int(text)
    raise AssertionError("the last has a value")
