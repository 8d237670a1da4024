"""An engine that is released is gone: no hook, no object, no memory."""

from __future__ import annotations

import json

import pytest

from tests.distributed.recipes import SCRIPTS


@pytest.mark.parametrize(
    ("zero_stage", "precision", "optimizer"),
    [(0, "fp32", "adamw"), (1, "bf16", "adamw"), (2, "fp32", "lamb")],
)
def test_twenty_stages_in_one_process(launch, zero_stage, precision, optimizer):
    done = launch(SCRIPTS / "twenty_stages.py", 2, str(zero_stage), precision, optimizer)
    result = json.loads(done.output.split("RESULT ", 1)[1].splitlines()[0])
    assert (result["alive"], result["hooks"], result["engines"]) == (0, 0, 0)
    memory = result["memory"]
    # Stages of two kinds take turns; the first of each still fills caches.
    assert max(memory[4:]) < 1.05 * max(memory[2:4]), memory
