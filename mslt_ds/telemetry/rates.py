"""What a throughput means: share of padding, operations per second, and their share of the device's peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mslt_ds.config.sections import RunConfig
from mslt_ds.plan.flops import instance_flops
from mslt_ds.plan.hardware import gpu_of_device
from mslt_ds.plan.stages import Stage

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rates:
    """peak: FLOP/s of all ranks in the compute precision; None where the device isn't in the table."""

    config: RunConfig
    vocab_size: int
    world_size: int
    peak: float | None

    @classmethod
    def on(cls, config: RunConfig, vocab_size: int, device: torch.device, world_size: int) -> Rates:
        from mslt_ds.distributed.world import device_name  # loads torch

        gpu = gpu_of_device(device_name(device)) if device.type == "cuda" else None
        peak = None if gpu is None else gpu.peak(config.train.precision) * world_size
        return cls(config, vocab_size, world_size, peak)

    def of(self, stage: Stage, sequences: float, tokens: float) -> dict[str, float]:
        """Of sequences and real tokens per second, all ranks together. `mfu` is model FLOP utilisation: the
        operations that the stage's step needs, divided by what the device could do."""
        filled = tokens / (sequences * stage.seq_length)
        flops = instance_flops(self.config, stage, self.vocab_size, filled).total * sequences
        rates = {"tokens_per_second": tokens, "padding": 1.0 - filled, "flops_per_second": flops}
        return rates if self.peak is None else rates | {"mfu": flops / self.peak}
