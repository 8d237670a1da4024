"""A run's metrics and events: metrics.jsonl, the progress display, wandb and TensorBoard.

All four are sinks of the same lines: a step's metrics or an event's fields, with `step` and `time`.
Only rank 0 has sinks. On other ranks the same calls do nothing, so callers need not know their rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import EnvironmentProblem
from mslt_ds.plan.stages import Plan
from mslt_ds.telemetry import tensorboard_sink, wandb_sink
from mslt_ds.telemetry.metrics import Line, MetricsWriter
from mslt_ds.telemetry.progress import open_progress

METRICS_FILE = "metrics.jsonl"
logger = logging.getLogger(__name__)


class Sink(Protocol):
    """A destination of lines."""

    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


class Telemetry:
    """Passes every line to all sinks. As a context manager it closes them at the end."""

    def __init__(self, sinks: Sequence[Sink], resume_step: int) -> None:
        self._sinks = sinks
        self._failed: set[type] = set()
        self._step = resume_step

    @classmethod
    def open(
        cls, config: RunConfig, run_dir: Path, plan: Plan, rank: int, resume_step: int
    ) -> Telemetry:
        """With the recipe's sinks on rank 0, without sinks on other ranks.

        resume_step: steps done before this process; 0 for a new run
        """
        settings = config.telemetry
        # Checked on every rank: if rank 0 failed alone, the others would wait for it.
        if settings.wandb.enabled:
            wandb_sink.check_installed()
        if settings.tensorboard:
            tensorboard_sink.check_installed()
        if rank != 0:
            return cls((), resume_step)
        try:
            sinks: list[Sink] = [MetricsWriter(run_dir / METRICS_FILE, resume_step)]
            if settings.wandb.enabled:
                sinks.append(wandb_sink.WandbSink(config, run_dir))
            if settings.tensorboard:
                sinks.append(tensorboard_sink.TensorboardSink(run_dir, resume_step))
        except OSError as error:
            raise EnvironmentProblem(
                f"{run_dir} can't be written ({error.strerror or error}); free space, or check the disk"
            ) from error
        sinks.append(open_progress(plan, resume_step))
        return cls(sinks, resume_step)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write a step's metrics. step: its number, from 0."""
        self._step = step
        self._write({"step": step, "time": time.time(), **metrics})

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Write an event.

        `step` in `fields` is the last step that the event belongs to (default: the step logged
        last). A run that resumes at that step or an earlier one repeats the event.
        """
        self._write({"event": name, "step": self._step, "time": time.time(), **fields})

    def close(self) -> None:
        """Flush and close all sinks. The object can't be used afterwards."""
        with ExitStack() as stack:  # closes all of them, even if one raises
            for sink in self._sinks:
                stack.callback(self._try, sink, sink.close)

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: Line) -> None:
        for sink in self._sinks:
            self._try(sink, partial(sink.write, line))

    def _try(self, sink: Sink, action: Callable[[], None]) -> None:
        """Do it; a disk that fails is reported once for each sink, and doesn't end the run."""
        try:
            action()
        except OSError as error:
            if type(sink) not in self._failed:
                self._failed.add(type(sink))
                logger.warning(
                    "%s can't be written (%s); the run goes on",
                    type(sink).__name__.removesuffix("Sink"), error.strerror or error,
                )  # fmt: skip
