"""A run: the stages of its plan, one after the other.

    for each stage:  grow the weights -> build the model -> make an engine -> train -> hand over

What is handed over is a `TrainingState`. A checkpoint holds the same, so a run that was killed
anywhere resumes without a special case: the stage that the state's step falls into decides whether
the model still has to grow.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mslt_ds import __version__
from mslt_ds.disk import checkpoint
from mslt_ds.distributed.agreement import StopRequest
from mslt_ds.distributed.sharing import broadcast_value, is_finite, on_rank_0
from mslt_ds.distributed.signals import StopFlag, Stopped
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.watchdog import Watchdog
from mslt_ds.distributed.world import check_same_on_all_ranks
from mslt_ds.guard import GoBack, check_rollbacks
from mslt_ds.model import compiled
from mslt_ds.plan.stages import Stage
from mslt_ds.preparation import Prepared
from mslt_ds.report.summary import print_summary
from mslt_ds.stage_run import Instruments, StageRun
from mslt_ds.state import TrainingState
from mslt_ds.telemetry import METRICS_FILE, Telemetry
from mslt_ds.telemetry.starts import add_start
from mslt_ds.telemetry.waits import Waits
from mslt_ds.telemetry.warned import add_warning, kept_warnings

# Keys that may differ between nodes: where files lie, how they are read.
_OF_A_NODE = (
    "output_dir", "data.path", "data.eval_path", "data.num_workers", "deepspeed.config",
    "plan.init_from", "telemetry.wandb",
)  # fmt: skip


def train(prepared: Prepared, flag: StopFlag) -> None:
    """All stages that are still to do, then the export. The ranks have joined; all call it.

    Where the numbers go wrong (`guard`), the run goes back to its last checkpoint, passes over the
    batches in question, and tries again. DivergenceError after `train.max_rollbacks`. Stopped where
    the run was told to stop.
    """
    config, folder = prepared.config, prepared.folder
    stop, meter, waits = StopRequest(flag), TrafficMeter(), Waits()
    with (
        kept_warnings(folder.path if prepared.world.is_main else None),
        Watchdog(flag, folder.path, config.train.hang_timeout_seconds) as watchdog,
        closing(folder),
    ):
        check_same_on_all_ranks(_shared(prepared))
        on_rank_0(partial(folder.describe, config, prepared.description))
        if prepared.world.is_main:
            add_start(folder.path, prepared.world, prepared.device, prepared.batches.digests)
            for warning in prepared.recipe.warnings():
                print(f"warning: {warning}", flush=True)
                add_warning(folder.path, warning)
            if config.train.compile == "auto":
                chosen, why = compiled.wanted("auto", prepared.device)
                print(f"train.compile: auto: {'on' if chosen else 'off'}, {why}", flush=True)
        attempts = _Attempts(prepared, Instruments(stop, watchdog, meter, waits))
        while (back := attempts.next()) is not None:
            attempts.rollbacks.append(back)
            check_rollbacks(attempts.rollbacks, config.train.max_rollbacks)
        if prepared.world.is_main:
            print_summary(folder.path)
        # A launcher ends all ranks once one has ended; from here on it may.
        stop.wait_for_all()


def _shared(prepared: Prepared) -> dict[str, Any]:
    """What all ranks have to have alike: recipe, plan, data, versions."""
    recipe = prepared.recipe
    flat = checkpoint.flatten(recipe.config.model_dump(mode="json"))
    return (
        {key: value for key, value in flat.items() if not key.startswith(_OF_A_NODE)}
        | {f"digest of {key}": value for key, value in prepared.batches.digests.items()}
        | {"DeepSpeed JSON (deepspeed.config)": recipe.deepspeed}
        | {"digest of the plan": hashlib.sha256(repr(recipe.plan).encode()).hexdigest()}
        | {"mslt-ds": __version__, "torch": torch.__version__}
    )


class _Attempts:
    """Attempts to complete a run, each from its last state on."""

    def __init__(self, prepared: Prepared, instruments: Instruments) -> None:
        self._prepared, self._instruments = prepared, instruments
        self._folder, self._plan = prepared.folder, prepared.recipe.plan
        self.rollbacks: list[GoBack] = []
        """Why the earlier attempts had to go back."""

    def next(self) -> GoBack | None:
        """The stages that are still to do, and the export. Why the run has to go back; None: it's
        complete. Stopped where it was told to stop."""
        if self.rollbacks:
            # Going back reads the run's folder and writes its metrics anew: it waits for the disk.
            self._folder.ask_for_room(METRICS_FILE)
        self._wait_for_writer(tries_again=bool(self.rollbacks))
        state = self._last_state()
        stop, watchdog = self._instruments.stop, self._instruments.watchdog
        with Telemetry.open(
            self._prepared.config,
            self._folder.path,
            self._plan,
            self._prepared.world.rank,
            state.step,
        ) as telemetry:
            damaged = self._folder.checkpoints.damaged
            while damaged:
                telemetry.event(
                    "checkpoint_damaged", {k: str(v) for k, v in vars(damaged.pop()).items()}
                )
            if self.rollbacks:
                telemetry.event("rolled_back", vars(self.rollbacks[-1]) | {"to_step": state.step})
            try:
                while (stage := self._next_stage(state)) is not None:
                    running = StageRun(self._prepared, self._instruments, telemetry, stage, state)
                    # The engine holds the tensors now.
                    state = TrainingState(state.step, passed_over=state.passed_over)
                    with closing(running), stop.held():
                        trace = running.train(state.step)
                        if trace.go_back is not None:
                            return trace.go_back
                        state = replace(state, step=trace.next_step)
                        if state.step == stage.end_step:
                            watchdog.doing(f"the end of stage {stage.index}")
                            state = running.state(stage.end_step)
                            if not is_finite(state):
                                return trace.not_finite()
                            running.end(state, trace)
                        self._wait_for_writer()
                self._export(state, telemetry)
            except Stopped:
                if self._prepared.world.is_main:
                    self._folder.check_written(state.step)
                telemetry.event("stopped", {"step": state.step - 1, "reason": stop.flag.reason})
                raise
        return None

    def _next_stage(self, state: TrainingState) -> Stage | None:
        """The stage that `state` lies in, or at the end of, where that was left out; None: all are
        done. A collective."""
        plan = self._plan
        if state.step > 0:
            before = plan.stage_at(state.step - 1)
            ended = before.end_step == state.step
            if ended and not broadcast_value(self._folder.has_ended(before)):
                return before
        return plan.stage_at(state.step) if state.step < plan.total_steps else None

    def _last_state(self) -> TrainingState:
        """The newest checkpoint's state, or first weights: whole on rank 0. It passes over what the
        checkpoint does and what the `rollbacks` found. A collective."""
        state = on_rank_0(self._read_last_state) or TrainingState(0)
        step, passed_over = broadcast_value((state.step, state.passed_over))
        for back in self.rollbacks:
            length = self._plan.stage_at(back.step).seq_length
            known = passed_over.get(length, ())
            if back.instances not in known:
                passed_over |= {length: (*known, back.instances)}
        return replace(state, step=step, passed_over=passed_over)

    def _read_last_state(self) -> TrainingState:
        self._folder.writer.drop()
        states = self._prepared.states

        def read(path: Path) -> TrainingState:
            self._folder.check_resumable(path)
            return checkpoint.load(path, states.shapes_after)

        return self._folder.checkpoints.read_newest(read) or states.first()

    def _wait_for_writer(self, *, tries_again: bool = False) -> None:
        """Until nothing is being written any more. A collective, and one every few seconds."""
        wait = partial(self._folder.wait, tries_again=tries_again)
        is_done = False
        while not is_done:
            self._instruments.watchdog.doing("what is being written")
            is_done = broadcast_value(on_rank_0(wait))

    def _export(self, state: TrainingState, telemetry: Telemetry) -> None:
        self._prepared.save_model("model", self._plan.stages[-1].depth, state.weights)
        self._wait_for_writer(tries_again=True)
        telemetry.event(
            "run_end",
            {
                "step": self._plan.total_steps,
                "model": str(self._folder.path / "model"),
                "unigram_entropy": self._prepared.batches.store.unigram_entropy(),
            },
        )
