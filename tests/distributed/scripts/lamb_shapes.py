"""Run by test_lamb.py under a launcher: any shapes, groups, ZeRO stage and number of ranks against
the reference.

All ranks draw the same examples (hypothesis without randomness of its own), and agree on the outcome
of each, so that they shrink a failure together. One launch covers every number of ranks up to its
own: an example splits the processes into two worlds, which train beside each other.
"""

from __future__ import annotations

import sys
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mslt_ds.optim import Lamb, LambOptions
from mslt_ds.optim.lamb_reference import lamb_reference_step
from tests.distributed.scripts.lamb_net import Split, weights_of

SETTINGS: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6}
STEPS = 4

Shape = tuple[int, ...]


class Linear(nn.Module):
    """A loss whose gradients are the given factors, of each parameter."""

    def __init__(self, shapes: list[Shape]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(len(shapes))
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes
        )

    def forward(self, factors: list[Tensor]) -> Tensor:
        return torch.stack(
            [(p * f).sum() for p, f in zip(self.weights, factors, strict=True)]
        ).sum()


def largest_difference(
    world: Split,
    shapes: list[Shape],
    groups: list[int],
    stage: int,
    robin: bool,
    options: LambOptions,
) -> float:
    """After some steps; groups: each parameter's group."""
    model = Linear(shapes)
    names = dict(model.named_parameters())
    weights = {name: p.detach().double().clone() for name, p in names.items()}
    decay = {name: 0.05 * group for name, group in zip(names, groups, strict=True)}
    members = [
        {"params": [p for n, p in names.items() if decay[n] == value], "weight_decay": value}
        for value in sorted(set(decay.values()))
    ]
    lamb = Lamb(members, options=options, **SETTINGS)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "round_robin_gradients": robin},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=lamb, config=config, mpu=world)
    lamb.bind(engine)
    state: dict[str, tuple[Tensor, Tensor, int]] = {}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        factors = [torch.randn(shape, generator=generator) for shape in shapes]
        engine.backward(engine(factors))
        engine.step()
        weights, state, _ = lamb_reference_step(
            weights,
            {name: f.double() for name, f in zip(names, factors, strict=True)},
            state,
            weight_decay=decay,
            options=options,
            **SETTINGS,
        )
    held = weights_of(engine)
    engine.destroy()
    return max((held[n].double() - weights[n]).abs().max().item() for n in names)


@settings(
    max_examples=16,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def check(data: st.DataObject) -> None:
    shape = st.lists(st.integers(1, 13), min_size=1, max_size=3).map(tuple)
    shapes: list[Shape] = data.draw(st.lists(shape, min_size=1, max_size=7))
    count = len(shapes)
    groups = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    stage = data.draw(st.sampled_from([0, 1, 2, 3]))
    robin = data.draw(st.booleans())
    options = data.draw(st.sampled_from([LambOptions(), LambOptions(adapt="all")]))
    everyone = dist.get_world_size()
    size = data.draw(st.integers(0, everyone // 2)) or everyone
    world = Split(size)
    difference = torch.tensor(largest_difference(world, shapes, groups, stage, robin, options))
    SIZES.update({size, everyone - size} - {0})
    dist.all_reduce(difference, op=dist.ReduceOp.MAX)
    if not difference.item() <= 2e-6:
        raise AssertionError(
            f"{shapes} {groups} ZeRO {stage} {robin}, {size} ranks: {difference.item():.1e}"
        )


SIZES: set[int] = set()
"""Of the worlds that were tried."""


if __name__ == "__main__":
    deepspeed.init_distributed("gloo")
    check()
    print(f"all shapes passed with {sorted(SIZES)} ranks")
    sys.exit(0)
