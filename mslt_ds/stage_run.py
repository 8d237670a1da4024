"""One stage of a run: its model and engine, its steps, its end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from mslt_ds.data.loader import GlobalBatch
from mslt_ds.disk.run_folder import BEFORE_DECAY
from mslt_ds.distributed.agreement import StopRequest
from mslt_ds.distributed.sharing import (
    broadcast_tensors,
    broadcast_value,
    is_finite,
    on_rank_0,
    share_training,
)
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.watchdog import INDEX_PATIENCE, Watchdog
from mslt_ds.distributed.world import check_equal_on_all_ranks
from mslt_ds.engine import StageEngine
from mslt_ds.feed import Feed
from mslt_ds.guard import StepGuard, StepResult
from mslt_ds.loop import Hooks, StageTrace, evaluate_losses, train_steps
from mslt_ds.plan.schedule import decay_start, learning_rate
from mslt_ds.plan.stages import Stage
from mslt_ds.preparation import Prepared
from mslt_ds.stage_parts import feed_of, model_of, settings_of
from mslt_ds.state import TrainingState
from mslt_ds.telemetry import Telemetry
from mslt_ds.telemetry.observer import StageObserver
from mslt_ds.telemetry.waits import Waits

_DESCRIBED = ("stage", "depth", "trainable_layers", "trainable_share", "steps", "seq_length")


@dataclass(frozen=True)
class Instruments:
    """What watches a run and measures it, from its first stage to its last."""

    stop: StopRequest
    watchdog: Watchdog
    meter: TrafficMeter
    waits: Waits


class StageRun:
    """A stage that has begun: data, model and engine are there. `train`, then `end`, then `close`.

    Making one is a collective.

    state: of rank 0; inside the stage, where a run resumes there. No reference to its tensors is kept
        but by the engine
    """

    def __init__(
        self,
        prepared: Prepared,
        instruments: Instruments,
        telemetry: Telemetry,
        stage: Stage,
        state: TrainingState,
    ) -> None:
        self._prepared, self._config = prepared, prepared.config
        self._instruments, self._telemetry, self._stage = instruments, telemetry, stage
        watchdog = instruments.watchdog
        watchdog.doing(f"the index for stage {stage.index}", INDEX_PATIENCE)
        self._batches = prepared.batches.training(stage, state)
        self._held_out = prepared.batches.evaluation(stage)
        watchdog.doing(f"the beginning of stage {stage.index}")
        self._engine = self._begin(state)
        self._decay_start = decay_start(self._config.schedule, prepared.recipe.plan.total_steps)

    def _begin(self, state: TrainingState) -> StageEngine:
        stage, device = self._stage, self._prepared.device
        world = self._prepared.world
        if world.is_main and state.step == stage.start_step:
            state = self._prepared.states.grown(stage, state)
            self._prepared.save_model(f"stages/{stage.index}/start", stage.depth, state.weights)
        state = replace(state, weights=broadcast_tensors(state.weights, device))
        model = model_of(
            self._config,
            stage,
            self._prepared.folder.hf_config(stage.depth),
            state.weights,
            device,
        )
        trained = frozenset(name for name, _ in model.suffix.named_parameters())
        settings = settings_of(self._prepared.recipe, stage, world.world_size)
        engine = StageEngine(
            model, settings, share_training(state, trained, device), self._instruments.meter
        )
        check_equal_on_all_ranks(
            dict(model.suffix.named_parameters()),
            f"weights at the beginning of stage {stage.index}",
        )
        return engine

    def train(self, step: int) -> StageTrace:
        """The stage's steps from `step` on."""
        stage, instruments, config = self._stage, self._instruments, self._config
        feed, batches = self._feed(), self._batches
        self._telemetry.event(
            "stage_start", self._described() | self._of_frozen(feed) | {"step": step}
        )
        run_dir = self._prepared.folder.path
        observer = StageObserver(
            self._telemetry, stage, step, self._prepared.rates, instruments.waits,
            self._prepared.device, profile_in=run_dir if self._prepared.world.is_main else None,
        )  # fmt: skip
        hooks = Hooks(
            learning_rate=partial(learning_rate, config, self._prepared.recipe.plan),
            log=observer.log,
            step_done=observer.step_done,
            skipped=self._tell_skipped,
            checkpoint=self._save_checkpoint,
            checkpoint_due=self._checkpoint_due,
            log_every_steps=config.telemetry.log_every_steps,
        )
        if self._prepared.compiles:
            instruments.watchdog.doing("compiling")
            batches = self._warmed_up(feed, batches, step)
        with closing(observer):
            return train_steps(
                self._engine,
                feed,
                batches,
                config.data.objective,
                steps=range(step, stage.end_step),
                hooks=hooks,
                guard=StepGuard(config.train),
                stop=instruments.stop,
                traffic=instruments.meter.traffic,
                watchdog=instruments.watchdog,
                device=self._prepared.device,
            )

    def state(self, step: int) -> TrainingState:
        """After `step` steps, whole on rank 0. A collective."""
        return self._engine.state(step)

    def end(self, state: TrainingState, trace: StageTrace) -> None:
        """Held-out losses, the boundary's model, a checkpoint: in this order, so that a kill in
        between repeats the stage's last steps and nothing is missing afterwards. A stop leaves out
        all but the checkpoint, and the next start begins here. A collective.

        state: after the stage's last step
        """
        stage, engine = self._stage, self._engine
        check_equal_on_all_ranks(
            dict(engine.model.suffix.named_parameters()), f"weights at step {stage.end_step}"
        )
        fields = self._described() | {"step": stage.end_step - 1}
        if trace.step_seconds:
            fields["median_step_seconds"] = statistics.median(trace.step_seconds)
        if self._held_out is not None:
            losses = evaluate_losses(
                engine,
                self._feed(),
                self._told(self._held_out),
                self._config.data.objective,
                self._instruments.stop,
            )
            if losses is None:
                self._prepared.folder.save_checkpoint(state, engine.frozen)
                return
            fields |= losses
        self._telemetry.event("stage_end", fields)
        self._save_before_decay(state)
        self._prepared.save_model(f"stages/{stage.index}/end", stage.depth, state.weights)
        self._prepared.folder.save_checkpoint(state, engine.frozen)

    def close(self) -> None:
        """Release the engine."""
        self._engine.close()

    def _feed(self) -> Feed:
        return feed_of(
            self._config,
            self._stage,
            self._engine.model.prefix,
            self._prepared.device,
            self._prepared.world.world_size,
        )

    def _of_frozen(self, feed: Feed) -> dict[str, Any]:
        """How the prefix runs; nothing where there is none."""
        if self._engine.model.prefix is None:
            return {}
        size = feed.at_once * self._stage.micro_batch_size
        return {"prefix_micro_batch_size": size, "prefix_ahead": feed.is_ahead}

    def _warmed_up(
        self, feed: Feed, batches: Iterator[GlobalBatch], step: int
    ) -> Iterator[GlobalBatch]:
        """The `batches`, once prefix and suffix are compiled for what the first of them is like."""
        began = time.perf_counter()
        first = next(batches)
        with closing(feed.training([first], step)) as fed:
            self._engine.warm_up(next(fed).inputs)
        if self._prepared.world.is_main:
            print(f"train.compile: took {time.perf_counter() - began:.0f} s", flush=True)
        return chain([first], batches)

    def _save_checkpoint(self, step: int, stops: bool) -> bool | None:
        """As `Hooks.checkpoint`."""
        folder = self._prepared.folder
        must = stops or step == self._decay_start
        if not broadcast_value(on_rank_0(partial(folder.is_ready, must=must))):
            return None
        reached = self._engine.state(step)
        finite = is_finite(reached)
        if finite:
            self._save_before_decay(reached)
            folder.save_checkpoint(reached, self._engine.frozen)
        return finite

    def _checkpoint_due(self, step: int) -> bool:
        return step % self._config.checkpoint.every_steps == 0 or step == self._decay_start

    def _save_before_decay(self, state: TrainingState) -> None:
        """The model at the end of a constant rate, which is the one to train on from later."""
        if state.step == self._decay_start:
            self._prepared.save_model(BEFORE_DECAY, self._stage.depth, state.weights)

    def _tell_skipped(self, result: StepResult) -> None:
        self._telemetry.event(
            "step_skipped",
            {"step": result.step, "reason": result.reason, "instances": list(result.instances)},
        )

    def _told(self, batches: Iterator[GlobalBatch]) -> Iterator[GlobalBatch]:
        """The batches, each reported to the watchdog."""
        for batch in batches:
            self._instruments.watchdog.doing(f"the evaluation after stage {self._stage.index}")
            yield batch

    def _described(self) -> dict[str, Any]:
        described = self._prepared.description["stages"][self._stage.index - 1]
        return {name: described[name] for name in _DESCRIBED}
