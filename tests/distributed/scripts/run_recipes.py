"""Run by the tests under a launcher: every recipe of a JSON list, one after another, as the main
job does, in the same processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from mslt_ds.distributed.signals import StopFlag
from mslt_ds.distributed.world import choose_device, join, leave, world_from_environment
from mslt_ds.preparation import prepare
from mslt_ds.recipe.loading import parse_recipe
from mslt_ds.run import train

flag = StopFlag()
world = world_from_environment(os.environ)
device = choose_device("cpu", world)
join(world, device, os.environ)
for recipe in json.loads(Path(sys.argv[-1]).read_text()):
    parsed = parse_recipe(recipe)
    parsed.check_world(world.world_size)
    train(prepare(parsed, world, device), flag)
leave()
