"""The progress of a run on standard output: a live display on a terminal, else plain lines.

Both show the stage, the step, the loss, the learning rate, sequences and tokens a second, memory and the
time left for the stage and for the run, and MFU where it's known. `mslt-ds status` prints the same. Plain
lines are at least some seconds apart, so that the log of a long run stays readable. The start and end of
a stage are always printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from mslt_ds.durations import duration
from mslt_ds.plan.stages import Plan, Stage
from mslt_ds.telemetry.metrics import Line, eval_losses
from mslt_ds.telemetry.pace import Pace

PLAIN_INTERVAL_SECONDS = 5.0


def open_progress(plan: Plan, resume_step: int) -> LiveProgress | PlainProgress:
    """The display for this standard output. resume_step: steps done before this process."""
    console = Console(highlight=False, soft_wrap=True)
    if console.file.isatty() and not console.is_dumb_terminal:
        return LiveProgress(plan, resume_step, console)
    return PlainProgress(plan, console)


def step_text(line: Line, stage: Stage) -> str:
    """A step's loss, learning rate, throughput and memory, as far as its line has them."""
    sequences = line["sequences_per_second"]
    tokens = line.get("tokens_per_second") or sequences * stage.seq_length
    parts = [
        f"loss {line['loss']:.3f}" if line["loss"] is not None else "loss not finite",
        f"lr {line['learning_rate']:.2e}",
        f"{sequences:,.0f} sequences/s",
        f"{tokens:,.0f} tokens/s",
    ]
    if line.get("mfu") is not None:
        parts.append(f"MFU {line['mfu']:.1%}")
    memory = line.get("cuda_memory_peak") or line.get("memory")
    if memory is not None:
        parts.append(f"{memory / 1e9:.2f} GB")
    return "  ".join(parts)


def event_text(line: Line, plan: Plan) -> str | None:
    """The text of an event that is displayed; None for any other."""
    where = f"stage {line['stage']}/{len(plan.stages)}" if "stage" in line else "run"
    if line["event"] == "stage_start":
        stage = plan.stages[line["stage"] - 1]
        text = (
            f"{where}: depth {stage.depth}, {stage.trainable_layers} layers train, "
            f"steps {line['step']:,} to {stage.end_step:,} at sequence length {stage.seq_length}"
        )
        if "prefix_micro_batch_size" in line:
            text += f"; the frozen part takes {line['prefix_micro_batch_size']} instances at once"
            text += ", one pass ahead" if line["prefix_ahead"] else ""
        return text
    if line["event"] == "first_step":
        since = "the command" if line["since"] == "command" else "the last step before"
        return f"{where}: first step done {line['seconds']:.1f} s after {since}"
    if line["event"] == "profile":
        seconds = line["step_seconds"]
        parts = (f"{name} {part / seconds:.0%}" for name, part in line["parts"].items())
        return (
            f"{where}: {line['profiled_steps']} steps profiled, {seconds:.3f} s each: {', '.join(parts)}; "
            f"{line['tokens_per_second']:,.0f} tokens/s, {line['padding']:.1%} padding"
            + (f", MFU {line['mfu']:.1%}" if "mfu" in line else "")
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
            f"{where} stopped after {line['step'] + 1:,} steps ({line['reason']}); the same command "
            "goes on from here"
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
        stage = self._plan.stage_at(line["step"])
        self._print(
            f"stage {stage.index}/{len(self._plan.stages)}  "
            f"step {line['step'] + 1:,}/{self._plan.total_steps:,}  {step_text(line, stage)}  "
            f"left: stage {duration(stage_left)}, run {duration(run_left)}"
        )

    def close(self) -> None:
        """Nothing to do."""

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)
        self._console.file.flush()  # a pipe or a file is buffered by blocks


class LiveProgress:
    """At the bottom of the terminal: a bar for the stage, one for the run, and the last step's numbers."""

    def __init__(self, plan: Plan, resume_step: int, console: Console) -> None:
        self._plan, self._pace = plan, Pace(plan)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("step {task.completed:,.0f} of {task.total:,.0f}"),
            TextColumn("{task.fields[left]}"),
        )
        self._numbers = Text(style="dim")
        self._live = Live(Group(self._bars, self._numbers), console=console, transient=True)
        first = plan.stage_at(min(resume_step, plan.total_steps - 1))
        self._stage_bar = self._bars.add_task("", left="")
        self._run_bar = self._bars.add_task(
            "run", total=plan.total_steps, completed=resume_step, left=""
        )
        self._show_stage(first.index, resume_step)
        self._live.start()

    def write(self, line: Line) -> None:
        if "event" in line:
            if text := event_text(line, self._plan):
                self._live.console.print(text, markup=False)
            if line["event"] == "stage_start":
                self._show_stage(line["stage"], line["step"])
            return
        done = line["step"] + 1
        stage_left, run_left = self._pace.update(line["step"], line["step_seconds"])
        self._show_stage(line["stage"], done)
        self._bars.update(self._stage_bar, left=f"{duration(stage_left)} left")
        self._bars.update(self._run_bar, completed=done, left=f"{duration(run_left)} left")
        self._numbers.plain = step_text(line, self._plan.stage_at(line["step"]))

    def close(self) -> None:
        self._live.stop()

    def _show_stage(self, index: int, steps_done: int) -> None:
        stage = self._plan.stages[index - 1]
        self._bars.update(
            self._stage_bar,
            description=f"stage {index}/{len(self._plan.stages)}",
            total=stage.steps,
            completed=steps_done - stage.start_step,
        )
