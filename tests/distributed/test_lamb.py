"""LAMB under ZeRO in real processes: the trajectory of 100 steps is the unsharded reference's."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT = SCRIPTS / "lamb_cases.py"


def test_equals_the_unsharded_reference(launch) -> None:
    assert "all cases passed" in launch(SCRIPT, 2, timeout=600).output


@pytest.mark.slow
@pytest.mark.parametrize("num_procs", [3, 5])
def test_equals_the_unsharded_reference_in_every_setting(launch, num_procs: int) -> None:
    launched = launch(SCRIPT, num_procs, "--every", "--only-trajectories", timeout=600)
    assert "all cases passed" in launched.output


@pytest.mark.slow
@pytest.mark.parametrize("num_procs", [2, 5])
def test_any_shapes(launch, num_procs: int) -> None:
    launched = launch(SCRIPTS / "lamb_shapes.py", num_procs, timeout=600)
    assert "all shapes passed" in launched.output
