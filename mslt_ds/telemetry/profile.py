"""`train.profile_steps`: where the time of a stage's steps goes, as a table and as a trace.

Rank 0 profiles that many steps of each stage, after the first two, which compile and warm up. The trace is
for chrome://tracing or Perfetto. The table adds up the parts that `timing` names. On a GPU these are the
times of the kernels that a part started; parts on several streams then add up to more than the step takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, schedule

from mslt_ds.atomic import replace_text
from mslt_ds.plan.stages import Stage
from mslt_ds.telemetry.rates import Rates
from mslt_ds.timing import BACKWARD, PARTS, REDUCTION, part_of

_WAIT, _WARM_UP = 1, 1
FOLDER = "profile"


class StageProfiler:
    """Profiles `steps` steps of one stage.

    folder: gets `stage_<k>.json.gz`, the trace, and `stage_<k>_parts.json`, the table
    told: gets the table once it's made
    """

    def __init__(
        self,
        steps: int,
        device: torch.device,
        folder: Path,
        stage: Stage,
        rates: Rates,
        told: Callable[[dict[str, Any]], None],
    ) -> None:
        self._steps, self._device, self._folder, self._stage = steps, device, folder, stage
        self._rates, self._told = rates, told
        self._done = self._instances = self._tokens = 0
        self._began = 0.0
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            # A prefix that runs ahead has a thread of its own.
            experimental_config=_ExperimentalConfig(profile_all_threads=True),
            schedule=schedule(wait=_WAIT, warmup=_WARM_UP, active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def step(self, instances: int, tokens: int) -> None:
        """After each step. instances: of all ranks; tokens: real ones of this rank."""
        self._done += 1
        if self._done == _WAIT + _WARM_UP:
            self._synchronize()
            self._profile.step()
            self._began = time.perf_counter()
            return
        if _WAIT + _WARM_UP < self._done <= _WAIT + _WARM_UP + self._steps:
            self._instances += instances
            self._tokens += tokens
            self._synchronize()
        self._profile.step()

    def close(self) -> None:
        """Before the stage's engine is gone. A stage of too few steps has no profile."""
        if self._done < _WAIT + _WARM_UP + self._steps:
            self._profile.on_trace_ready = None
        self._profile.stop()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _write(self, profiled: profile) -> None:
        seconds = (time.perf_counter() - self._began) / self._steps
        self._folder.mkdir(parents=True, exist_ok=True)
        profiled.export_chrome_trace(str(self._folder / f"stage_{self._stage.index}.json.gz"))
        on_gpu = self._device.type == "cuda"
        found = dict.fromkeys(PARTS, 0.0)
        for event in profiled.key_averages():
            if (part := part_of(event.key)) is not None:
                microseconds = event.device_time_total if on_gpu else event.cpu_time_total
                found[part] += microseconds / 1e6 / self._steps
        # DeepSpeed reduces inside of the backward pass.
        found[BACKWARD] = max(0.0, found[BACKWARD] - found[REDUCTION])
        per_second = 1 / (seconds * self._steps)
        # The other ranks' tokens are taken to be as many.
        tokens = self._tokens * self._rates.world_size * per_second
        table = {
            "stage": self._stage.index,
            "profiled_steps": self._steps,
            "step_seconds": seconds,
            "parts": found | {"other": max(0.0, seconds - sum(found.values()))},
            "sequences_per_second": self._instances * per_second,
        } | self._rates.of(self._stage, self._instances * per_second, tokens)
        path = self._folder / f"stage_{self._stage.index}_parts.json"
        replace_text(path, json.dumps(table, indent=1) + "\n")
        self._told(table)
