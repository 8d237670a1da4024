"""`mslt-ds status`: how far a run is, from its folder alone, so from any shell that sees the folder."""

from __future__ import annotations

import argparse
import time

from mslt_ds import paths
from mslt_ds.durations import duration
from mslt_ds.report.record import RunRecord
from mslt_ds.telemetry.metrics import FAULTS, eval_losses
from mslt_ds.telemetry.pace import Pace
from mslt_ds.telemetry.progress import step_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mslt-ds status`."""
    parser.add_argument("run_dir", type=paths.path, metavar="RUN", help="a run folder")


def run(arguments: argparse.Namespace) -> int:
    """Print the status."""
    print("\n".join(status_lines(RunRecord.read(arguments.run_dir), time.time())))
    return 0


def status_lines(run: RunRecord, now: float) -> list[str]:
    """The status in lines of text. now: Unix time."""
    state = run.state(now)
    lines = [f"{run.path}: {state}{_since(run, now)}", *_where(run)]
    plan = run.stage_plan
    done = run.steps_done
    stage = plan.stage_at(min(done, plan.total_steps - 1))
    if state != "finished":
        lines.append(
            f"stage {stage.index}/{len(plan.stages)}: step {done - stage.start_step:,} of {stage.steps:,}, "
            f"depth {stage.depth}, {stage.trainable_layers} layers train"
        )
    lines.append(f"run: step {done:,} of {plan.total_steps:,} ({done / plan.total_steps:.0%})")
    timed = [line for line in run.steps if line.get("step_seconds") is not None]
    if timed:
        last = timed[-1]
        lines.append(step_text(last, plan.stage_at(last["step"])))
    if timed and state != "finished":
        pace = Pace(plan)
        left = [pace.update(line["step"], line["step_seconds"]) for line in timed]
        stage_left, run_left = left[-1]
        lines.append(f"left: stage {duration(stage_left)}, run {duration(run_left)}")
    for index, end in sorted(run.stage_ends.items()):
        losses = [
            f"{name.upper()} {loss:.3f}"
            for name, loss in eval_losses(end).items()
            if loss is not None
        ]
        if losses:
            lines.append(f"held-out loss after stage {index}: {', '.join(losses)}")
    for name in FAULTS:
        if found := run.events(name):
            lines.append(f"{name}: {len(found)}, the last at step {found[-1]['step']:,}")
    if resumes := run.resumes():
        lines.append(f"resumes: {len(resumes)}, the last at step {resumes[-1]['step']:,}")
    if "model" in run.run_end:
        lines.append(f"model: {run.run_end['model']}")
    return lines


def _since(run: RunRecord, now: float) -> str:
    times = [line["time"] for line in run.lines if "time" in line]
    return f", last line {duration(max(0.0, now - times[-1]))} ago" if times else ""


def _where(run: RunRecord) -> list[str]:
    """On which machine the last process started."""
    if not run.starts:
        return []
    start = run.starts[-1]
    ranks = start.get("world_size", 1)
    job = f"Slurm job {start['slurm_job']}, " if start.get("slurm_job") else ""
    return [
        f"{job}{start.get('host')}: {ranks} {'rank' if ranks == 1 else 'ranks'}, {start.get('device')}"
    ]
