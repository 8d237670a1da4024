"""A run: the stages of its plan, one after the other.

    for each stage:  grow the weights -> build the model -> make an engine -> train -> hand over

What is handed over is a `TrainingState`. A checkpoint holds the same, so a run that was killed
anywhere resumes without a special case: the stage that the state's step falls into decides whether
the model still has to grow.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from mslt_ds import __version__
from mslt_ds.batches import Batches
from mslt_ds.config.sections import RunConfig
from mslt_ds.data.loader import GlobalBatch
from mslt_ds.data.store import TokenStore
from mslt_ds.disk import checkpoint, pretrained
from mslt_ds.disk.checkpoint import CheckpointFolder
from mslt_ds.disk.lock import RunLock
from mslt_ds.disk.run_folder import RunFolder
from mslt_ds.disk.writer import Writer
from mslt_ds.distributed.agreement import StopRequest
from mslt_ds.distributed.sharing import (
    broadcast_tensors,
    broadcast_value,
    on_rank_0,
    share_training,
)
from mslt_ds.distributed.signals import StopFlag, Stopped
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.watchdog import INDEX_PATIENCE, Watchdog
from mslt_ds.distributed.world import World, check_equal_on_all_ranks, check_same_on_all_ranks
from mslt_ds.engine import EngineSettings, StageEngine
from mslt_ds.errors import RecipeError
from mslt_ds.feed import Feed
from mslt_ds.guard import GoBack, StepGuard, StepResult, check_rollbacks
from mslt_ds.loop import Hooks, StageTrace, evaluate_losses, train_steps
from mslt_ds.model import compiled
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.growth import grow, grow_optimizer_state
from mslt_ds.model.initial import fresh_parameter, fresh_weights
from mslt_ds.model.staged import StageModel
from mslt_ds.plan import cost
from mslt_ds.plan.schedule import learning_rate
from mslt_ds.plan.stages import Stage
from mslt_ds.recipe.loading import Recipe
from mslt_ds.report.model_card import write_model_card
from mslt_ds.report.summary import print_summary
from mslt_ds.state import TrainingState, Weights
from mslt_ds.telemetry import Telemetry
from mslt_ds.telemetry.observer import StageObserver
from mslt_ds.telemetry.rates import Rates
from mslt_ds.telemetry.starts import add_start
from mslt_ds.telemetry.waits import Waits

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Keys that may differ between nodes: where files lie, how they are read.
_OF_A_NODE = (
    "output_dir", "data.path", "data.eval_path", "data.num_workers", "deepspeed.config",
    "plan.init_from", "telemetry.wandb",
)  # fmt: skip
_DESCRIBED = ("stage", "depth", "trainable_layers", "trainable_share", "steps", "seq_length")


@dataclass(frozen=True)
class Run:
    """One rank's view of a run. `prepare` checks, `train` does."""

    recipe: Recipe
    world: World
    device: torch.device
    batches: Batches
    folder: RunFolder
    description: dict[str, Any]
    """The plan with its costs, as `mslt-ds plan` prints it."""
    init_from: Path | None
    """The folder of `plan.init_from`; on rank 0 where a run begins, None elsewhere."""

    @classmethod
    def prepare(
        cls, recipe: Recipe, world: World, device: torch.device, lock: RunLock | None = None
    ) -> Run:
        """Open the data and find the checkpoint to go on from. Needs no process group yet.

        lock: on the run's folder; None on all ranks but 0
        """
        config = recipe.config
        store = TokenStore.open(Path(config.data.path))
        held_out = config.data.eval_path
        eval_store = None if held_out is None else TokenStore.open(Path(held_out))
        _check_vocabularies(config, store, eval_store)
        if world.local_rank == 0:  # a machine may have a copy of its own
            for opened in (store, eval_store):
                if opened is not None:
                    opened.verify_at_start()
        _check_positions(recipe, store)
        vocab_size = config.model.vocab_size or store.vocab_size
        keep = config.checkpoint
        checkpoints = CheckpointFolder(config.run_dir / "checkpoints", keep.keep, keep.keep_every)
        folder = RunFolder(
            config.run_dir,
            world.is_main,
            checkpoints,
            checkpoint.fingerprint(config, store.digest),
            partial(_hf_config, config, vocab_size, asdict(store.corpus.special)),
            store.tokenizer_dir,
            Writer(keep.give_up_after),
            lock,
        )
        # Importing the model's classes takes seconds. All ranks do it here, where none waits for another.
        FAMILIES[config.model.family].model_class(folder.hf_config(recipe.plan.stages[-1].depth))
        # Rank 0 alone reads checkpoints, which the other ranks may see late.
        resumes = world.is_main and checkpoints.read_newest(folder.check_resumable)
        init_from = None
        if config.plan.init_from is not None and world.is_main and not resumes:
            init_from = pretrained.find(config.plan.init_from)
            first = folder.hf_config(recipe.plan.stages[0].depth)
            pretrained.check_folder(
                init_from,
                first,
                store.tokenizer_dir,
                new_vocabulary=config.plan.new_vocabulary is not None,
            )
        description = cost.describe_plan(
            config,
            recipe.plan,
            vocab_size=vocab_size,
            world_size=world.world_size,
            zero_stage=recipe.zero_stage,
        )
        return cls(
            recipe,
            world,
            device,
            Batches(recipe, world, device, store, eval_store),
            folder,
            description,
            init_from,
        )

    @property
    def config(self) -> RunConfig:
        return self.recipe.config

    # ---- the story ---------------------------------------------------------------------------

    def train(self, flag: StopFlag) -> None:
        """All stages that are still to do, then the export.

        Where the numbers go wrong (`guard`), the run goes back to its last checkpoint, passes over
        the batches in question, and tries again. DivergenceError after `train.max_rollbacks`.
        Stopped where the run was told to stop.
        """
        stop, meter, waits = StopRequest(flag), TrafficMeter(), Waits()
        timeout = self.config.train.hang_timeout_seconds
        with (
            Watchdog(flag, self.folder.path, timeout) as watchdog,
            closing(self.folder),
        ):
            check_same_on_all_ranks(self._shared())
            on_rank_0(partial(self.folder.describe, self.config, self.description))
            if self.world.is_main:
                add_start(self.folder.path, self.world, self.device, self.batches.digests)
                for warning in self.recipe.warnings():
                    print(f"warning: {warning}", flush=True)
                if self.config.train.compile == "auto":
                    chosen, why = compiled.wanted("auto", self.device)
                    print(f"train.compile: auto: {'on' if chosen else 'off'}, {why}", flush=True)
            rollbacks: list[GoBack] = []
            while (back := self._attempt(rollbacks, stop, meter, waits, watchdog)) is not None:
                rollbacks.append(back)
                check_rollbacks(rollbacks, self.config.train.max_rollbacks)
            if self.world.is_main:
                print_summary(self.folder.path)
            # A launcher ends all ranks once one has ended; from here on it may.
            stop.wait_for_all()

    def _shared(self) -> dict[str, Any]:
        """What all ranks have to have alike: recipe, plan, data, versions."""
        flat = checkpoint.flatten(self.config.model_dump(mode="json"))
        return (
            {key: value for key, value in flat.items() if not key.startswith(_OF_A_NODE)}
            | {f"digest of {key}": value for key, value in self.batches.digests.items()}
            | {"DeepSpeed JSON (deepspeed.config)": self.recipe.deepspeed}
            | {"digest of the plan": hashlib.sha256(repr(self.recipe.plan).encode()).hexdigest()}
            | {"mslt-ds": __version__, "torch": torch.__version__}
        )

    def _attempt(
        self,
        rollbacks: list[GoBack],
        stop: StopRequest,
        meter: TrafficMeter,
        waits: Waits,
        watchdog: Watchdog,
    ) -> GoBack | None:
        """The stages from the last state on. Why the run has to go back; None: it's complete."""
        self._wait_for_writer(watchdog)
        state = self._last_state(rollbacks)
        with Telemetry.open(
            self.config, self.folder.path, self.recipe.plan, self.world.rank, state.step
        ) as telemetry:
            damaged = self.folder.checkpoints.damaged
            while damaged:
                telemetry.event(
                    "checkpoint_damaged", {k: str(v) for k, v in vars(damaged.pop()).items()}
                )
            if rollbacks:
                telemetry.event("rolled_back", vars(rollbacks[-1]) | {"to_step": state.step})
            try:
                while (stage := self._next_stage(state)) is not None:
                    watchdog.doing(f"the index for stage {stage.index}", INDEX_PATIENCE)
                    data = self.batches.training(stage, state), self.batches.evaluation(stage)
                    watchdog.doing(f"the beginning of stage {stage.index}")
                    engine = self._begin_stage(stage, state, meter)
                    # The engine holds the tensors now.
                    state = TrainingState(state.step, passed_over=state.passed_over)
                    with closing(engine), stop.held():
                        trace = self._train_stage(
                            stage, state, engine, data[0], stop, meter, waits, watchdog, telemetry
                        )
                        if trace.go_back is not None:
                            return trace.go_back
                        state = replace(state, step=trace.next_step)
                        if state.step == stage.end_step:
                            watchdog.doing(f"the end of stage {stage.index}")
                            state = engine.state(stage.end_step)
                            if not self._is_finite(state):
                                return trace.not_finite()
                            held_out = data[1] and _told(data[1], watchdog, stage)
                            self._end_stage(stage, state, engine, held_out, trace, stop, telemetry)
                        self._wait_for_writer(watchdog)
                self._export(state, telemetry, watchdog)
            except Stopped:
                if self.world.is_main:
                    self.folder.check_written(state.step)
                telemetry.event("stopped", {"step": state.step - 1, "reason": stop.flag.reason})
                raise
        return None

    def _next_stage(self, state: TrainingState) -> Stage | None:
        """The stage that `state` lies in, or at the end of, where that was left out; None: all are
        done. A collective."""
        plan = self.recipe.plan
        if state.step > 0:
            before = plan.stage_at(state.step - 1)
            if before.end_step == state.step and not broadcast_value(self.folder.has_ended(before)):
                return before
        return plan.stage_at(state.step) if state.step < plan.total_steps else None

    def _is_finite(self, state: TrainingState) -> bool:
        """Whether rank 0's state is. A collective."""
        return broadcast_value(state.is_finite())

    def _last_state(self, rollbacks: list[GoBack]) -> TrainingState:
        """The newest checkpoint's state, or first weights: whole on rank 0. It passes over what the
        checkpoint does and what the `rollbacks` found. A collective."""
        state = on_rank_0(self._read_last_state) or TrainingState(0)
        step, passed_over = broadcast_value((state.step, state.passed_over))
        for back in rollbacks:
            length = self.recipe.plan.stage_at(back.step).seq_length
            known = passed_over.get(length, ())
            if back.instances not in known:
                passed_over |= {length: (*known, back.instances)}
        return replace(state, step=step, passed_over=passed_over)

    def _wait_for_writer(self, watchdog: Watchdog, *, tries_again: bool = False) -> None:
        """Until nothing is being written any more. A collective, and one every few seconds."""
        wait = partial(self.folder.wait, tries_again=tries_again)
        is_done = False
        while not is_done:
            watchdog.doing("what is being written")
            is_done = broadcast_value(on_rank_0(wait))

    def _read_last_state(self) -> TrainingState:
        self.folder.writer.drop()

        def read(path: Path) -> TrainingState:
            self.folder.check_resumable(path)
            return checkpoint.load(path, self._shapes_after)

        found = self.folder.checkpoints.read_newest(read)
        return found or TrainingState(step=0, weights=self._first_weights())

    def _shapes_after(self, step: int) -> dict[str, tuple[int, ...]] | None:
        """Each parameter's name and shape after `step` steps; None where the plan ends before."""
        if step > self.recipe.plan.total_steps:
            return None
        # At a stage's end the model hasn't grown yet.
        stage = self.recipe.plan.stage_at(max(0, step - 1))
        family = FAMILIES[self.config.model.family]
        return family.parameter_shapes(self.folder.hf_config(stage.depth))

    def _first_weights(self) -> Weights:
        """Fresh ones, or those of `plan.init_from` with its missing heads fresh."""
        hf_config = self.folder.hf_config(self.recipe.plan.stages[0].depth)
        given = self.config.plan.init_from
        if given is None:
            return fresh_weights(hf_config, seed=self.config.seed, final=self._final_config)
        # A run whose checkpoints are all damaged begins again, and hasn't looked for it before.
        folder = self.init_from or pretrained.find(given)
        new = None
        if self.config.plan.new_vocabulary is not None:
            new = self.batches.store.tokenizer_dir
        weights, missing = pretrained.load(folder, hf_config, self._fresh_parameter, new)
        if missing:
            print(
                f"plan.init_from: {folder} lacks {', '.join(missing)}: these begin fresh",
                flush=True,
            )
        return weights

    def _begin_stage(self, stage: Stage, state: TrainingState, meter: TrafficMeter) -> StageEngine:
        """The stage's engine, made from rank 0's `state`. A collective."""
        if self.world.is_main and state.step == stage.start_step:
            state = self._grow(stage, state)
            self._save_model(f"stages/{stage.index}/start", stage.depth, state.weights)
        train = self.config.train
        state = replace(state, weights=broadcast_tensors(state.weights, self.device))
        model = StageModel.build(
            self.folder.hf_config(stage.depth),
            self.config.data.objective,
            stage.frozen_layers,
            state.weights,
            frozen_dropout=train.frozen_dropout == "on",
            dtype=_DTYPES[train.precision],
            device=self.device,
            prefix_dtype=_DTYPES[train.prefix_precision or train.precision],
            train_embeddings=stage.train_embeddings,
        )
        if self._compiles:
            model.compile()
        trained = frozenset(name for name, _ in model.suffix.named_parameters())
        settings = EngineSettings(
            optimizer=self.config.optimizer,
            deepspeed=self.recipe.deepspeed,
            precision=train.precision,
            gradient_clipping=train.gradient_clipping,
            micro_batch_size=stage.micro_batch_size,
            gradient_accumulation_steps=stage.gradient_accumulation_steps(self.world.world_size),
        )
        engine = StageEngine(model, settings, share_training(state, trained, self.device), meter)
        check_equal_on_all_ranks(
            dict(model.suffix.named_parameters()),
            f"weights at the beginning of stage {stage.index}",
        )
        return engine

    def _grow(self, stage: Stage, state: TrainingState) -> TrainingState:
        """The state that the stage begins with: weights grown, moments carried, copied or dropped."""
        policy = self.config.optimizer.state
        if stage.index == 1:
            return state
        if policy == "reset":
            state = replace(state, optimizer_state={})
        if stage.init == "keep":
            return state
        each = self.config.model.layers_per_block
        depths = self.recipe.plan.stages[stage.index - 2].depth // each, stage.depth // each
        family = FAMILIES[self.config.model.family]
        shapes = family.parameter_shapes(self.folder.hf_config(stage.depth))
        kinds = family.kinds(self.config.model, depths[1])
        weights = grow(
            state.weights,
            *depths,
            stage.init,
            fresh=self._fresh_parameter,
            block_prefix=family.block_prefix,
            shapes=shapes,
            kinds=kinds,
        )
        optimizer_state = grow_optimizer_state(
            state.optimizer_state,
            *depths,
            stage.init,
            copy=policy == "copy",
            block_prefix=family.block_prefix,
            shapes=shapes,
            kinds=kinds,
        )
        return replace(state, weights=weights, optimizer_state=optimizer_state)

    def _fresh_parameter(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return fresh_parameter(name, shape, seed=self.config.seed, final=self._final_config)

    @cached_property
    def _final_config(self) -> PretrainedConfig:
        """Of the whole model, which initial values may depend on."""
        return self.folder.hf_config(self.recipe.plan.stages[-1].depth)

    def _feed(self, engine: StageEngine, stage: Stage) -> Feed:
        train, prefix = self.config.train, engine.model.prefix
        at_once = (
            train.prefix_micro_batch_size or stage.micro_batch_size
        ) // stage.micro_batch_size
        ahead = train.prefix_ahead == "on"
        if train.prefix_ahead == "auto" and prefix is not None:
            # On a CPU of its own, a rank has nothing to wait for; and all threads share a generator.
            on_cpu = self.world.world_size > 1 and not prefix.dropout
            ahead = self.device.type == "cuda" or on_cpu
        return Feed(prefix, self.device, self.config.seed, at_once=at_once, ahead=ahead)

    def _train_stage(
        self,
        stage: Stage,
        state: TrainingState,
        engine: StageEngine,
        batches: Iterator[GlobalBatch],
        stop: StopRequest,
        meter: TrafficMeter,
        waits: Waits,
        watchdog: Watchdog,
        telemetry: Telemetry,
    ) -> StageTrace:
        """The stage's steps from that of `state` on."""
        telemetry.event("stage_start", self._described(stage) | {"step": state.step})

        def save_checkpoint(step: int, stops: bool) -> bool | None:
            if not broadcast_value(on_rank_0(self.folder.is_ready)) and not stops:
                return None
            reached = engine.state(step)
            finite = self._is_finite(reached)
            if finite:
                self.folder.save_checkpoint(reached, engine.frozen)
            return finite

        observer = StageObserver(
            telemetry, stage, state.step, self._rates, waits, self.device,
            profile_in=self.folder.path if self.world.is_main else None,
        )  # fmt: skip
        hooks = Hooks(
            learning_rate=partial(learning_rate, self.config, self.recipe.plan),
            log=observer.log,
            step_done=observer.step_done,
            skipped=partial(_tell_skipped, telemetry),
            checkpoint=save_checkpoint,
            log_every_steps=self.config.telemetry.log_every_steps,
            checkpoint_every_steps=self.config.checkpoint.every_steps,
        )
        feed = self._feed(engine, stage)
        if self._compiles:
            watchdog.doing("compiling")
            batches = self._warmed_up(engine, feed, batches, state.step)
        with closing(observer):
            return train_steps(
                engine,
                feed,
                batches,
                self.config.data.objective,
                steps=range(state.step, stage.end_step),
                hooks=hooks,
                guard=StepGuard(self.config.train),
                stop=stop,
                traffic=meter.traffic,
                watchdog=watchdog,
                device=self.device,
            )

    @cached_property
    def _rates(self) -> Rates:
        vocab_size = self.description["vocab_size"]
        return Rates.on(self.config, vocab_size, self.device, self.world.world_size)

    @cached_property
    def _compiles(self) -> bool:
        return compiled.wanted(self.config.train.compile, self.device)[0]

    def _warmed_up(
        self, engine: StageEngine, feed: Feed, batches: Iterator[GlobalBatch], step: int
    ) -> Iterator[GlobalBatch]:
        """The `batches`, once prefix and suffix are compiled for what the first of them is like."""
        began = time.perf_counter()
        first = next(batches)
        with closing(feed.training([first], step)) as fed:
            engine.warm_up(next(fed).inputs)
        if self.world.is_main:
            print(f"train.compile: took {time.perf_counter() - began:.0f} s", flush=True)
        return chain([first], batches)

    def _end_stage(
        self,
        stage: Stage,
        state: TrainingState,
        engine: StageEngine,
        held_out: Iterator[GlobalBatch] | None,
        trace: StageTrace,
        stop: StopRequest,
        telemetry: Telemetry,
    ) -> None:
        """Held-out losses, the boundary's model, a checkpoint: in this order, so that a kill in
        between repeats the stage's last steps and nothing is missing afterwards. A stop leaves out
        all but the checkpoint, and the next start begins here (`_next_stage`). A collective."""
        check_equal_on_all_ranks(
            dict(engine.model.suffix.named_parameters()), f"weights at step {stage.end_step}"
        )
        fields = self._described(stage) | {"step": stage.end_step - 1}
        if trace.step_seconds:
            fields["median_step_seconds"] = statistics.median(trace.step_seconds)
        if held_out is not None:
            losses = evaluate_losses(
                engine, self._feed(engine, stage), held_out, self.config.data.objective, stop
            )
            if losses is None:
                self.folder.save_checkpoint(state, engine.frozen)
                return
            fields |= losses
        telemetry.event("stage_end", fields)
        self._save_model(f"stages/{stage.index}/end", stage.depth, state.weights)
        self.folder.save_checkpoint(state, engine.frozen)

    def _described(self, stage: Stage) -> dict[str, Any]:
        described = self.description["stages"][stage.index - 1]
        return {name: described[name] for name in _DESCRIBED}

    def _export(self, state: TrainingState, telemetry: Telemetry, watchdog: Watchdog) -> None:
        self._save_model("model", self.recipe.plan.stages[-1].depth, state.weights)
        self._wait_for_writer(watchdog, tries_again=True)
        telemetry.event(
            "run_end",
            {
                "step": self.recipe.plan.total_steps,
                "model": str(self.folder.path / "model"),
                "unigram_entropy": self.batches.store.unigram_entropy(),
            },
        )

    def _save_model(self, name: str, depth: int, weights: Weights) -> None:
        """A model of the run folder with its card. On rank 0; elsewhere nothing happens."""
        write_card = partial(write_model_card, self.folder.path, name)
        self.folder.save_model(name, depth, weights, write_card)


def _told(
    batches: Iterator[GlobalBatch], watchdog: Watchdog, stage: Stage
) -> Iterator[GlobalBatch]:
    """The batches; the watchdog is told of each."""
    for batch in batches:
        watchdog.doing(f"the evaluation after stage {stage.index}")
        yield batch


def _tell_skipped(telemetry: Telemetry, result: StepResult) -> None:
    telemetry.event(
        "step_skipped",
        {"step": result.step, "reason": result.reason, "instances": list(result.instances)},
    )


def _hf_config(
    config: RunConfig, vocab_size: int, special: Mapping[str, int], depth: int
) -> PretrainedConfig:
    """The configuration of the recipe's model at `depth` layers."""
    return FAMILIES[config.model.family].hf_config(
        config.model, depth, vocab_size, config.data.objective.heads, special
    )


def _check_positions(recipe: Recipe, store: TokenStore) -> None:
    model, pad = recipe.config.model, store.corpus.special.pad
    longest = FAMILIES[model.family].longest_sequence(model.max_position_embeddings, pad)
    needed = max(stage.seq_length for stage in recipe.plan.stages)
    if needed > longest:
        raise RecipeError(
            f"model.max_position_embeddings: {model.max_position_embeddings} rows are enough for "
            f"{longest} tokens, since those up to the padding token's id, {pad} in data.path, hold no "
            f"position, and the recipe's sequences have {needed}; choose "
            f"{model.max_position_embeddings + needed - longest} or more"
        )


def _check_vocabularies(
    config: RunConfig, store: TokenStore, eval_store: TokenStore | None
) -> None:
    needed, given = store.vocab_size, config.model.vocab_size
    if given is not None and given < needed:
        raise RecipeError(
            f"model.vocab_size: {given} is below the {needed} tokens of data.path "
            f"{config.data.path}; leave it out, or choose {needed} or more"
        )
    if eval_store is not None and not eval_store.same_vocabulary(store):
        raise RecipeError(
            f"data.eval_path: {config.data.eval_path} was prepared with another "
            f"vocabulary than data.path {config.data.path}; prepare it with "
            f"--tokenizer {config.data.path}"
        )
