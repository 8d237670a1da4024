"""Run by test_guard.py under a launcher: recipes of a JSON list, with numbers spoiled in chosen batches.

Each recipe comes as {"recipe": {...}, "kind": "loss" | "gradient", "starts": [...], "stop": ...}. In a
batch that begins with one of the instances `starts`, the last rank's loss or gradient is made infinite or
NaN. An empty list spoils every batch. `stop` tells the last rank to stop: at the instance that a batch
begins with, or in "evaluation". `other` holds keys that the last rank alone has otherwise. Prints the exit code of each run, and goes on where one failed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from mslt_ds.distributed.signals import StopFlag, Stopped
from mslt_ds.distributed.world import choose_device, join, leave, world_from_environment
from mslt_ds.engine import StageEngine
from mslt_ds.errors import MsltError, report
from mslt_ds.feed import SuffixInputs
from mslt_ds.preparation import prepare
from mslt_ds.recipe.loading import parse_recipe
from mslt_ds.run import train
from tests.distributed.recipes import merged
from tests.planted import plant

flag = StopFlag()
world = world_from_environment(os.environ)
device = choose_device("cpu", world)
join(world, device, os.environ)
evaluate = StageEngine.evaluate
case: dict = {}


def stop_at(place: int | str) -> None:
    if place == case["stop"] and world.rank == world.world_size - 1:
        flag.set("a test")


def watched_evaluation(self: StageEngine, inputs: SuffixInputs) -> torch.Tensor:
    stop_at("evaluation")
    return evaluate(self, inputs)


def kind_of(first_instance: int) -> str:
    stop_at(first_instance)
    chosen = not case["starts"] or first_instance in case["starts"]
    return case["kind"] if chosen and world.rank == world.world_size - 1 else "none"


plant(kind_of)
StageEngine.evaluate = watched_evaluation
for case in json.loads(Path(sys.argv[-1]).read_text()):
    code = 0
    try:
        other = case["other"] if world.rank == world.world_size - 1 else {}
        parsed = parse_recipe(merged(case["recipe"], other))
        train(prepare(parsed, world, device), flag)
    except MsltError as error:
        code = report(error) if world.is_main else error.exit_code
    except Stopped as stopped:
        code = stopped.code
        flag.reason, flag._raised = None, False
    if world.is_main:
        print("ENDED", case["recipe"]["name"], code, flush=True)
leave()
