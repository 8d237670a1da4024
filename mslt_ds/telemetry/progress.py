"""The progress of a run on standard output: a live display on a terminal, else plain lines.

Both show the stage, the step, the loss, the learning rate, sequences/s and the time left for the
stage and for the run. Plain lines are at least some seconds apart, so that the log of a long run stays
readable. The start and end of a stage are always printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mslt_ds.plan.stages import Plan
from mslt_ds.telemetry.metrics import Line, eval_losses
from mslt_ds.telemetry.pace import Pace, duration

PLAIN_INTERVAL_SECONDS = 5.0


def open_progress(plan: Plan, resume_step: int) -> LiveProgress | PlainProgress:
    """The display for this standard output. resume_step: steps done before this process."""
    console = Console(highlight=False, soft_wrap=True)
    if console.file.isatty() and not console.is_dumb_terminal:
        return LiveProgress(plan, resume_step, console)
    return PlainProgress(plan, console)


def step_text(line: Line) -> str:
    """Loss, learning rate and throughput of a step's line."""
    return (
        f"loss {line['loss']:.3f}  lr {line['learning_rate']:.2e}  "
        f"{line['sequences_per_second']:,.0f} sequences/s"
    )


def event_text(line: Line, plan: Plan) -> str | None:
    """The text of an event that is displayed; None for any other."""
    where = f"stage {line['stage']}/{len(plan.stages)}" if "stage" in line else "run"
    if line["event"] == "stage_start":
        stage = plan.stages[line["stage"] - 1]
        return (
            f"{where}: depth {stage.depth}, {stage.trainable_layers} layers train, "
            f"steps {line['step']:,} to {stage.end_step:,} at sequence length {stage.seq_length}"
        )
    if line["event"] == "stage_end":
        parts = [f"{where} done"]
        if line.get("median_step_seconds") is not None:
            parts.append(f"median step {line['median_step_seconds']:.3f} s")
        parts += [
            f"held-out {name.upper()} loss {loss:.3f}"
            for name, loss in eval_losses(line).items()
            if loss is not None
        ]
        return ", ".join(parts)
    if line["event"] == "stopped":
        return (
            f"{where} stopped after {line['step'] + 1:,} steps; the same command goes on from here"
        )
    return None


class PlainProgress:
    """One line of text every few seconds."""

    def __init__(
        self, plan: Plan, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._console, self._clock = plan, console, clock
        self._pace = Pace(plan)
        self._due = clock()

    def write(self, line: Line) -> None:
        if "event" in line:
            if text := event_text(line, self._plan):
                self._print(text)
            return
        stage_left, run_left = self._pace.update(line["step"], line["step_seconds"])
        if self._clock() < self._due:
            return
        self._due = self._clock() + PLAIN_INTERVAL_SECONDS
        self._print(
            f"stage {line['stage']}/{len(self._plan.stages)}  "
            f"step {line['step'] + 1:,}/{self._plan.total_steps:,}  {step_text(line)}  "
            f"left: stage {duration(stage_left)}, run {duration(run_left)}"
        )

    def close(self) -> None:
        """Nothing to do."""

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)
        self._console.file.flush()  # a pipe or a file is buffered by blocks


class LiveProgress:
    """Two bars at the bottom of the terminal, for the stage and for the run."""

    def __init__(self, plan: Plan, resume_step: int, console: Console) -> None:
        self._plan, self._pace = plan, Pace(plan)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
        )
        first = plan.stage_at(min(resume_step, plan.total_steps - 1))
        self._stage_bar = self._progress.add_task("", text="")
        self._run_bar = self._progress.add_task(
            "run", total=plan.total_steps, completed=resume_step, text=""
        )
        self._show_stage(first.index, resume_step)
        self._progress.start()

    def write(self, line: Line) -> None:
        if "event" in line:
            if text := event_text(line, self._plan):
                self._progress.console.print(text, markup=False)
            if line["event"] == "stage_start":
                self._show_stage(line["stage"], line["step"])
            return
        done = line["step"] + 1
        stage_left, run_left = self._pace.update(line["step"], line["step_seconds"])
        self._show_stage(line["stage"], done)
        self._progress.update(
            self._stage_bar, text=f"{step_text(line)}  {duration(stage_left)} left"
        )
        self._progress.update(self._run_bar, completed=done, text=f"{duration(run_left)} left")

    def close(self) -> None:
        self._progress.stop()

    def _show_stage(self, index: int, steps_done: int) -> None:
        stage = self._plan.stages[index - 1]
        self._progress.update(
            self._stage_bar,
            description=f"stage {index}/{len(self._plan.stages)}",
            total=stage.steps,
            completed=steps_done - stage.start_step,
        )
