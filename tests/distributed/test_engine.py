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


def test_fp16_scales_the_loss_and_carries_the_scale(launch):
    done = launch(SCRIPTS / "fp16_scale.py", 2)
    result = json.loads(done.output.split("RESULT ", 1)[1].splitlines()[0])
    for zero_stage, run in result["fp16"].items():
        # The norm of the gradients of the loss, not of the scaled loss, nor of a fraction of it.
        assert run["norms"] == pytest.approx(result["exact_norms"], rel=0.02), zero_stage
        # Adam's first steps move by the learning rate, 1e-3: rounding of fp16 is far below.
        assert run["difference"] < 6e-4, zero_stage
        assert run["scales"][-1] > run["scales"][0], zero_stage
        assert run["boundary_scales"] == run["scales"], zero_stage
        assert run["boundary_difference"] < 1e-6, zero_stage
        # Overflows of a scale that doesn't change count as skipped steps.
        assert run["dynamic"] == [True, False], zero_stage
