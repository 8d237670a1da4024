"""What the scripts of test_lamb.py share: a small regression, and its unsharded reference.

Every rank sees its own part of a batch; the reference, in fp64, the whole of it. The gradients depend
on the weights, so an error grows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from mslt_ds.optim import Lamb, LambOptions
from mslt_ds.optim.lamb_reference import lamb_reference_step
from mslt_ds.optim.masters import NamedMasters

STEPS, PER_RANK, ACCUMULATION, CLIP = 100, 3, 2, 0.05
OPTIMIZER: dict[str, Any] = {"lr": 0.004, "betas": (0.9, 0.99), "eps": 1e-6}


class Net(nn.Module):
    """Prime widths; a first layer larger than the rest together, so it straddles partitions."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.3 * torch.randn(shape, generator=generator))

        self.first, self.first_bias = drawn(31, 17), drawn(31)
        self.norm = nn.Parameter(torch.ones(31))
        self.second, self.second_bias = drawn(7, 31), drawn(7)
        self.third, self.scale = drawn(3, 7), drawn(1)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = torch.tanh(inputs @ self.first.T + self.first_bias) * self.norm
        hidden = torch.tanh(hidden @ self.second.T + self.second_bias)
        return (hidden @ self.third.T * self.scale - targets).square().mean()


class Split:
    """The first `size` processes are a world, the others another (DeepSpeed's `mpu`)."""

    worlds: ClassVar[dict[tuple[int, ...], Any]] = {}

    def __init__(self, size: int) -> None:
        everyone = range(dist.get_world_size())
        for ranks in (everyone[:size], everyone[size:], *([rank] for rank in everyone)):
            key = tuple(ranks)
            if key and key not in self.worlds:  # made by all ranks, in the same order
                self.worlds[key] = dist.new_group(list(key))
        ours = everyone[:size] if dist.get_rank() < size else everyone[size:]
        self.ranks = list(ours)

    def get_data_parallel_group(self) -> Any:
        return self.worlds[tuple(self.ranks)]

    def get_data_parallel_group_ranks(self) -> list[int]:
        return self.ranks

    def get_data_parallel_world_size(self) -> int:
        return len(self.ranks)

    def get_data_parallel_rank(self) -> int:
        return self.ranks.index(dist.get_rank())

    def get_model_parallel_group(self) -> Any:
        return self.worlds[(dist.get_rank(),)]

    def get_model_parallel_world_size(self) -> int:
        return 1

    def get_model_parallel_rank(self) -> int:
        return 0


DECAY = {name: (0.0 if p.dim() < 2 else 0.1) for name, p in Net(0).named_parameters()}


def batch(step: int, micro: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed((step * ACCUMULATION + micro) * 64 + rank)
    inputs = torch.randn(PER_RANK, 17, generator=generator)
    return inputs.to(dtype), torch.sin(inputs[:, :3] * 2).to(dtype)


def reference(options: LambOptions, clip: float, ranks: int) -> dict[str, Tensor]:
    """fp64, unsharded, on the whole batch of so many ranks."""
    model = Net(1).double()
    names = dict(model.named_parameters())
    state: dict[str, tuple[Tensor, Tensor, int]] = {}
    for step in range(STEPS):
        parts = [
            batch(step, micro, rank, torch.float64)
            for micro in range(ACCUMULATION)
            for rank in range(ranks)
        ]
        model.zero_grad()
        model(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))).backward()
        gradients = {n: p.grad for n, p in names.items() if p.grad is not None}
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        if clip:
            factor = 1.0 / max(1.0, (norm.item() + 1e-6) / clip)
            gradients = {n: g * factor for n, g in gradients.items()}
        weights = {n: p.detach() for n, p in names.items()}
        weights, state, _ = lamb_reference_step(
            weights, gradients, state, weight_decay=DECAY, options=options, **OPTIMIZER
        )
        for name, parameter in names.items():
            parameter.data.copy_(weights[name])
    return {name: p.detach().float() for name, p in names.items()}


def build(
    zero: dict[str, Any],
    clip: float,
    *,
    options: LambOptions | None = None,
    precision: str = "fp32",
    groups: int = 2,
    backend: Any = "auto",
    bind: bool = True,
    world: Split | None = None,
) -> tuple[Any, Lamb]:
    model = Net(1)
    names = dict(model.named_parameters())
    if groups == 2:
        settings = [
            {"params": [p for n, p in names.items() if DECAY[n] == decay], "weight_decay": decay}
            for decay in (0.1, 0.0)
        ]
    else:  # one group for each parameter: some are smaller than the number of ranks
        settings = [{"params": [p], "weight_decay": DECAY[n]} for n, p in names.items()]
    optimizer = Lamb(settings, options=options, backend=backend, **OPTIMIZER)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": PER_RANK,
        "gradient_accumulation_steps": ACCUMULATION,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    match precision:
        case "fp16":
            config["fp16"] = {"enabled": True, "initial_scale_power": 10}
        case "bf16" | "bf16+fp32":
            config["bf16"] = {"enabled": True}
    if precision == "bf16+fp32":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, mpu=world)
    if bind:
        optimizer.bind(engine)
    return engine, optimizer


def train(engine: Any, steps: range) -> None:
    rank = dist.get_rank(engine.seq_data_parallel_group)
    for step in steps:
        for micro in range(ACCUMULATION):
            engine.backward(engine(*batch(step, micro, rank, torch.float32)))
            engine.step()


def weights_of(engine: Any) -> dict[str, Tensor]:
    """The fp32 masters, whole, on the CPU."""
    names = dict(engine.module.named_parameters())
    if engine.zero_optimization_stage() == 3:
        masters: dict[str, Any] = {name: safe_get_full_fp32_param(p) for name, p in names.items()}
        return {name: master.detach().cpu() for name, master in masters.items()}
    return NamedMasters.bind(engine, names).read_weights()


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max((left[n].double() - right[n].double()).abs().max().item() for n in left)


def report(label: str, difference: float, limit: float) -> None:
    if not difference <= limit:  # a NaN is no pass
        raise SystemExit(f"{label}: differs by {difference:.2e}, allowed {limit:.0e}")
    if dist.get_rank() == 0:
        print(f"{label}: {difference:.1e}", flush=True)
