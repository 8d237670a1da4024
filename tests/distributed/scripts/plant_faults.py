"""Run by test_guard.py under a launcher: recipes of a JSON list, with numbers spoiled in chosen batches.

Each recipe comes as {"recipe": {...}, "kind": "loss" | "gradient", "starts": [...], "stop": ...}. In a
batch that begins with one of the instances `starts`, the last rank's loss or gradient is made infinite or
NaN. An empty list spoils every batch. `stop` tells the last rank to stop: at the instance that a batch
begins with, or in "evaluation". `other` holds keys that the last rank alone has otherwise. Prints the exit code of each run, and goes on where one failed.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from mslt_ds.data.loader import GlobalBatch
from mslt_ds.distributed.signals import StopFlag, Stopped
from mslt_ds.distributed.world import choose_device, join, leave, world_from_environment
from mslt_ds.engine import StageEngine
from mslt_ds.errors import MsltError, report
from mslt_ds.feed import Fed, Feed, SuffixInputs
from mslt_ds.preparation import prepare
from mslt_ds.recipe.loading import parse_recipe
from mslt_ds.run import train
from tests.distributed.recipes import merged

flag = StopFlag()
world = world_from_environment(os.environ)
device = choose_device("cpu", world)
join(world, device, os.environ)
feed, accumulate, evaluate = Feed.training, StageEngine.accumulate, StageEngine.evaluate
case: dict = {}
first_instance = 0


def watched(self: Feed, batches: Iterable[GlobalBatch], first_step: int) -> Iterator[Fed]:
    global first_instance
    for fed in feed(self, batches, first_step):
        first_instance = fed.batch.instances[0]
        stop_at(first_instance)
        yield fed


def stop_at(place: int | str) -> None:
    if place == case["stop"] and world.rank == world.world_size - 1:
        flag.set("a test")


def watched_evaluation(self: StageEngine, inputs: SuffixInputs) -> torch.Tensor:
    stop_at("evaluation")
    return evaluate(self, inputs)


def spoiled(self: StageEngine, inputs: SuffixInputs, denominators: tuple) -> torch.Tensor:
    chosen = not case["starts"] or first_instance in case["starts"]
    if case["kind"] == "none" or not chosen or world.rank != world.world_size - 1:
        return accumulate(self, inputs, denominators)
    if case["kind"] == "loss":
        return accumulate(self, inputs, tuple(0 * number for number in denominators))
    parameter = next(self.model.suffix.parameters())
    handle = parameter.register_hook(lambda gradient: gradient * math.inf)
    try:
        return accumulate(self, inputs, denominators)
    finally:
        handle.remove()


Feed.training = watched  # pyright: ignore[reportAttributeAccessIssue]
StageEngine.accumulate, StageEngine.evaluate = spoiled, watched_evaluation
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
