"""LAMB under ZeRO in real processes: the trajectory of 100 steps is the unsharded reference's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT = SCRIPTS / "lamb_cases.py"


def test_equals_the_unsharded_reference(launch) -> None:
    assert "all cases passed" in launch(SCRIPT, 2, timeout=600).output


@pytest.mark.slow
@pytest.mark.parametrize(("num_procs", "which"), [(3, "--rare"), (5, "--worlds")])
def test_equals_the_unsharded_reference_on_more_ranks(launch, num_procs: int, which: str) -> None:
    launched = launch(SCRIPT, num_procs, which, "--only-trajectories", timeout=600)
    assert "all cases passed" in launched.output


@pytest.mark.slow
def test_any_shapes_on_1_to_5_ranks(launch) -> None:
    launched = launch(SCRIPTS / "lamb_shapes.py", 5, timeout=600)
    assert "all shapes passed with [1, 2, 3, 4, 5] ranks" in launched.output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_low_precision_on_a_gpu(launch) -> None:
    """One process: NCCL has no two ranks on one GPU."""
    script = SCRIPTS / "lamb_low_precision.py"
    launched = launch(script, 1, env={"DS_ACCELERATOR": "cuda"}, timeout=600)
    assert "all cases passed" in launched.output
