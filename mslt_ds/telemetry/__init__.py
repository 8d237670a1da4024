"""What a run tells about itself: metrics.jsonl, the progress display, wandb and TensorBoard.

All four are sinks of the same lines: a step's metrics or an event's fields with `step` and `time`.
Only rank 0 has sinks; on the other ranks the same calls do nothing, so the trainer never asks which
rank it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from mslt_ds.config.sections import RunConfig
from mslt_ds.plan.stages import Plan
from mslt_ds.telemetry import tensorboard_sink, wandb_sink
from mslt_ds.telemetry.metrics import Line, MetricsWriter
from mslt_ds.telemetry.progress import open_progress

METRICS_FILE = "metrics.jsonl"


class Sink(Protocol):
    """Somewhere that lines go."""

    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


class Telemetry:
    """Hands every line to all sinks. Also a context manager that closes at the end."""

    def __init__(self, sinks: Sequence[Sink], resume_step: int) -> None:
        self._sinks = sinks
        self._step = resume_step

    @classmethod
    def open(
        cls, config: RunConfig, run_dir: Path, plan: Plan, rank: int, resume_step: int
    ) -> Telemetry:
        """The sinks that the recipe asks for, on rank 0; none on other ranks.

        resume_step: steps done before this process; 0 for a run that starts
        """
        settings = config.telemetry
        # On every rank: one that fails alone leaves the others waiting for it.
        if settings.wandb.enabled:
            wandb_sink.check_installed()
        if settings.tensorboard:
            tensorboard_sink.check_installed()
        if rank != 0:
            return cls((), resume_step)
        run_dir.mkdir(parents=True, exist_ok=True)
        sinks: list[Sink] = [MetricsWriter(run_dir / METRICS_FILE, resume_step)]
        if settings.wandb.enabled:
            sinks.append(wandb_sink.WandbSink(config, run_dir))
        if settings.tensorboard:
            sinks.append(tensorboard_sink.TensorboardSink(run_dir, resume_step))
        sinks.append(open_progress(plan, resume_step))
        return cls(sinks, resume_step)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step's metrics. step: its number, counted from 0."""
        self._step = step
        self._write({"step": step, "time": time.time(), **metrics})

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Something that happened beside the steps.

        `step` in `fields` is the last step that it belongs to: a run that resumes there or earlier
        repeats the event. Left out, it's the step logged last.
        """
        self._write({"event": name, "step": self._step, "time": time.time(), **fields})

    def close(self) -> None:
        """Flush everything; the object can't be used afterwards."""
        with ExitStack() as stack:  # one that fails doesn't keep the others from closing
            for sink in self._sinks:
                stack.callback(sink.close)

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: Line) -> None:
        for sink in self._sinks:
            sink.write(line)
