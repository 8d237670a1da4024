"""What is recorded of a stage's steps while they run: metrics, the wait for the first one, a profile."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from mslt_ds.plan.stages import Stage
from mslt_ds.telemetry import Telemetry
from mslt_ds.telemetry.profile import FOLDER, StageProfiler
from mslt_ds.telemetry.rates import Rates
from mslt_ds.telemetry.waits import Waits


class StageObserver:
    """The loop's hooks for one stage.

    first_step: of the stage in this process
    profile_in: the run's folder, where rank 0 profiles `train.profile_steps` steps; None elsewhere
    """

    def __init__(
        self,
        telemetry: Telemetry,
        stage: Stage,
        first_step: int,
        rates: Rates,
        waits: Waits,
        device: torch.device,
        profile_in: Path | None,
    ) -> None:
        self._telemetry, self._stage, self._first_step = telemetry, stage, first_step
        self._rates, self._waits, self._device = rates, waits, device
        steps = rates.config.train.profile_steps
        self._profiler = None
        if steps and profile_in is not None:
            told = partial(telemetry.event, "profile")
            self._profiler = StageProfiler(steps, device, profile_in / FOLDER, stage, rates, told)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """metrics: of the loop; `Rates` are added."""
        throughput = metrics["sequences_per_second"], metrics["tokens_per_second"]
        rates = self._rates.of(self._stage, *throughput)
        self._telemetry.log(step, {"stage": self._stage.index} | metrics | rates)

    def step_done(self, step: int, instances: int, tokens: int) -> None:
        """instances: of all ranks; tokens: real ones of this rank."""
        if step == self._first_step:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            fields = {"stage": self._stage.index, "step": step} | self._waits.first_step()
            self._telemetry.event("first_step", fields)
        if self._profiler is not None:
            self._profiler.step(instances, tokens)

    def close(self) -> None:
        """After the stage's last step."""
        self._waits.last_step()
        if self._profiler is not None:
            self._profiler.close()
