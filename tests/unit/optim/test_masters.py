"""State by name without processes: what the launched tests can't have, an optimizer as apex makes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mslt_ds.errors import CheckpointError, EnvironmentProblem
from mslt_ds.optim.masters import NamedMasters


class CountsByGroup(torch.optim.Optimizer):
    """Moments beside the parameter, the count in the group, as apex's FusedLAMB has them."""

    __module__ = "apex.optimizers.fused_lamb"

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0})

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg"] += 1.0


def bound() -> tuple[CountsByGroup, NamedMasters]:
    parameters = [torch.nn.Parameter(torch.ones(n)) for n in (2, 3, 4)]
    optimizer = CountsByGroup([{"params": parameters[:2]}, {"params": parameters[2:]}])
    engine = SimpleNamespace(optimizer=optimizer, global_steps=0)
    names = {f"p{index}": parameter for index, parameter in enumerate(parameters)}
    return optimizer, NamedMasters.bind(engine, names)


def test_counts_by_group() -> None:
    optimizer, state = bound()
    assert state.read_optimizer_state() == {}
    moments = {
        "p0": {"exp_avg": torch.ones(2), "step": 5},
        "p1": {"exp_avg": torch.ones(3), "step": 5},
    }
    state.write_optimizer_state(moments)
    optimizer.step()
    read = state.read_optimizer_state()
    assert {name: entry["step"] for name, entry in read.items()} == {"p0": 6, "p1": 6, "p2": 1}
    assert torch.equal(read["p0"]["exp_avg"], torch.full((2,), 2.0))
    with pytest.raises(CheckpointError, match="share one count"):
        state.write_optimizer_state({"p0": moments["p0"]})


def test_unknown_wrapper() -> None:
    engine = SimpleNamespace(optimizer=SimpleNamespace(optimizer=None), global_steps=0)
    with pytest.raises(EnvironmentProblem, match="SimpleNamespace"):
        NamedMasters.bind(engine, {})


def test_version_that_keeps_masters_elsewhere() -> None:
    """The wrapper's name is known, its attributes are not."""
    wrapper = type("BF16_Optimizer", (), {"bf16_groups": [[]], "optimizer": None})()
    with pytest.raises(EnvironmentProblem, match="elsewhere"):
        NamedMasters.bind(SimpleNamespace(optimizer=wrapper, global_steps=0), {})
