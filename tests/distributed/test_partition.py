"""Masters and optimizer state by name, in real processes, for every wrapper DeepSpeed uses."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripts" / "partition_cases.py"


@pytest.mark.parametrize("num_procs", [2, 3, pytest.param(1, marks=pytest.mark.slow)])
def test_read_and_write_by_name(launch, num_procs: int) -> None:
    launched = launch(SCRIPT, num_procs)
    assert "all cases passed" in launched.output
    wrappers = "AdamW BF16_Optimizer DeepSpeedZeroOptimizer FP16_Optimizer FP16_UnfusedOptimizer"
    assert f"wrappers: {wrappers}" in launched.output
