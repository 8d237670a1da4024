"""Run by the tests under a launcher: every recipe of a JSON list, one after another, as the main
job does, in the same processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from mslt_ds.config import parse_config
from mslt_ds.distributed import choose_device, join, leave, world_from_environment
from mslt_ds.run import Run
from mslt_ds.signals import StopFlag

flag = StopFlag()
world = world_from_environment(os.environ)
device = choose_device("cpu", world)
join(world, device, os.environ)
for recipe in json.loads(Path(sys.argv[-1]).read_text()):
    config = parse_config(recipe)
    config.check_world(world.world_size)
    code = Run.prepare(config, world, device).train(flag)
    if code:
        sys.exit(code)
leave()
