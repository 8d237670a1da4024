"""The entry point of a run: what it makes of a machine that lacks memory."""

from __future__ import annotations

import pytest
import torch

from mslt_ds import train
from mslt_ds.errors import EnvironmentProblem


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(1 << 50),
        lambda: [0] * (1 << 60),
        lambda: (_ for _ in ()).throw(
            torch.OutOfMemoryError("CUDA out of memory.\nMore")
        ).__next__(),
    ],
)
def test_want_of_memory_is_told_with_a_remedy(ask):
    with (
        pytest.raises(EnvironmentProblem, match=r"out of memory \(.*lower train.micro_batch_size"),
        train._memory_problems(),
    ):
        ask()


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="another"), train._memory_problems():
        raise RuntimeError("another")
