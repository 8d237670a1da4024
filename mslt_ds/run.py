"""A run: its folder, where it stands, and the stages it goes through.

    for each stage:  grow the weights -> build the model -> make an engine -> train -> hand over

What is handed over is a `TrainingState`: fp32 weights of record, optimizer state by name, the loss
scale. It's also what a checkpoint holds, so a run that was killed anywhere goes on from one without
a special case: the stage that the state's step falls into says whether the model still has to grow.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from mslt_ds.atomic import replace_text
from mslt_ds.config.sections import RunConfig
from mslt_ds.data.instances import InstanceOptions
from mslt_ds.data.loader import GlobalBatch, global_batches
from mslt_ds.data.store import TokenStore
from mslt_ds.disk import checkpoint, pretrained
from mslt_ds.disk.checkpoint import CheckpointFolder, TrainingState
from mslt_ds.disk.model_folder import save_weights
from mslt_ds.distributed.signals import EXIT_CODE_STOPPED, StopFlag, StopRequest
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.distributed.world import World, check_equal_on_all_ranks
from mslt_ds.engine import EngineSettings, StageEngine
from mslt_ds.errors import RecipeError
from mslt_ds.loop import LoopSettings, StageTrace, evaluate_losses, train_steps
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.family import Family
from mslt_ds.model.growth import Weights, grow, grow_optimizer_state
from mslt_ds.model.initial import fresh_parameter, fresh_weights
from mslt_ds.model.staged import StageModel
from mslt_ds.plan import cost
from mslt_ds.plan.schedule import learning_rate
from mslt_ds.plan.stages import Plan, Stage
from mslt_ds.recipe.loading import Recipe
from mslt_ds.report.summary import print_summary
from mslt_ds.telemetry import Telemetry

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class _Instruments:
    """What watches a run from its first step to its last."""

    meter: TrafficMeter
    stop: StopRequest
    telemetry: Telemetry


@dataclass(frozen=True)
class Run:
    """One rank's view of a run. `prepare` checks, `train` does."""

    recipe: Recipe
    world: World
    device: torch.device
    store: TokenStore
    eval_store: TokenStore | None
    checkpoints: CheckpointFolder
    resume_from: Path | None

    @classmethod
    def prepare(cls, recipe: Recipe, world: World, device: torch.device) -> Run:
        """Open the data and find the checkpoint to go on from; no process group is needed yet."""
        config = recipe.config
        store = TokenStore.open(Path(config.data.path))
        eval_store = None
        if config.data.eval_path is not None:
            eval_store = TokenStore.open(Path(config.data.eval_path))
        checkpoints = CheckpointFolder(config.run_dir / "checkpoints", config.checkpoint.keep)
        run = cls(
            recipe, world, device, store, eval_store, checkpoints, checkpoints.latest()
        )  # fmt: skip
        run._check_vocabularies()
        if run.resume_from is not None:
            checkpoint.check_resumable(run.resume_from, run._fingerprint)
        elif config.plan.init_from is not None and world.is_main:
            # Others may see the checkpoint late, and then have nothing to ask of the folder.
            pretrained.check_folder(
                Path(config.plan.init_from), run._first_hf_config, store.tokenizer_dir
            )
        return run

    @property
    def config(self) -> RunConfig:
        return self.recipe.config

    @property
    def plan(self) -> Plan:
        return self.recipe.plan

    def _check_vocabularies(self) -> None:
        needed, given = self.store.vocab_size, self.config.model.vocab_size
        if given is not None and given < needed:
            raise RecipeError(
                f"model.vocab_size: {given} is below the {needed} tokens of data.path "
                f"{self.config.data.path}; leave it out, or choose {needed} or more"
            )
        if self.eval_store is not None and not self.eval_store.same_vocabulary(self.store):
            raise RecipeError(
                f"data.eval_path: {self.config.data.eval_path} was prepared with another "
                f"vocabulary than data.path {self.config.data.path}; prepare it with "
                f"--tokenizer {self.config.data.path}"
            )

    @property
    def _fingerprint(self) -> dict[str, Any]:
        return checkpoint.fingerprint(self.config, self.store.digest)

    @property
    def _vocab_size(self) -> int:
        return self.config.model.vocab_size or self.store.vocab_size

    @property
    def _family(self) -> Family:
        return FAMILIES[self.config.model.family]

    def _hf_config(self, depth: int) -> PretrainedConfig:
        return self._family.hf_config(
            self.config.model,
            depth,
            self._vocab_size,
            self.config.data.objective.heads,
        )

    @property
    def _first_hf_config(self) -> PretrainedConfig:
        return self._hf_config(self.plan.stages[0].depth)

    @property
    def _final_hf_config(self) -> PretrainedConfig:
        return self._hf_config(self.plan.stages[-1].depth)

    @property
    def _description(self) -> dict[str, Any]:
        """The plan with its costs, as `mslt-ds plan` prints it."""
        return cost.describe_plan(
            self.config,
            self.plan,
            vocab_size=self._vocab_size,
            world_size=self.world.world_size,
            zero_stage=self.recipe.zero_stage,
        )

    def _stage_fields(self, stage: Stage) -> dict[str, Any]:
        names = ("stage", "depth", "trainable_layers", "trainable_share", "steps", "seq_length")
        described = self._description["stages"][stage.index - 1]
        return {name: described[name] for name in names}

    # ---- the story ---------------------------------------------------------------------------

    def train(self, flag: StopFlag) -> int:
        """All stages that are still to do, then the export. The exit code."""
        stop = StopRequest(flag)
        state = self._first_state()
        self._write_description()
        with Telemetry.open(
            self.config, self.config.run_dir, self.plan, self.world.rank, state.step
        ) as telemetry:
            instruments = _Instruments(TrafficMeter(), stop, telemetry)
            for stage in self.plan.stages:
                if state.step >= stage.end_step:
                    continue
                state = self._train_stage(stage, state, instruments)
                if state is None:
                    # A launcher ends all ranks once one has ended; this is when they may.
                    stop.wait_for_all()
                    return EXIT_CODE_STOPPED
            self._export(state, telemetry)
        if self.world.is_main:
            print_summary(self.config.run_dir)
        stop.wait_for_all()
        return 0

    def _first_state(self) -> TrainingState:
        """The checkpoint that rank 0 saw (a shared disk may show others late), or first weights."""
        chosen = [self.resume_from]
        dist.broadcast_object_list(chosen, src=0)
        if chosen[0] is not None:
            return checkpoint.load(chosen[0])
        return TrainingState(step=0, weights=self._first_weights())

    def _first_weights(self) -> Weights:
        """Fresh ones, or those of `plan.init_from`, its missing heads fresh."""
        if self.config.plan.init_from is None:
            return fresh_weights(
                self._first_hf_config, seed=self.config.seed, final=self._final_hf_config
            )
        folder = Path(self.config.plan.init_from)
        weights, missing = pretrained.load(folder, self._first_hf_config, self._fresh_parameter)
        if missing and self.world.is_main:
            print(
                f"plan.init_from: {folder} lacks {', '.join(missing)}: these begin fresh",
                flush=True,
            )
        return weights

    def _train_stage(
        self, stage: Stage, state: TrainingState, instruments: _Instruments
    ) -> TrainingState | None:
        """The state after the stage, or None where the run was told to stop (and has saved)."""
        telemetry = instruments.telemetry
        if state.step == stage.start_step:
            state = self._begin_stage(stage, state)
            self._save_model(f"stages/{stage.index}/start", stage.depth, state.weights)
        check_equal_on_all_ranks(state.tensors(), f"weights or moments at step {state.step}")
        engine = self._engine(stage, state, instruments.meter)
        telemetry.event("stage_start", self._stage_fields(stage) | {"step": state.step})

        def state_at(step: int) -> TrainingState:
            return TrainingState(
                step=step,
                weights=state.weights | engine.weights(),
                optimizer_state=state.optimizer_state | engine.optimizer_state(),
                loss_scale=engine.loss_scale_state(),
            )

        def checkpoint_inside(step: int) -> None:
            # The last step's belongs to the stage's end, after all that a boundary writes.
            if step < stage.end_step:
                self._checkpoint(state_at(step))

        try:
            trace = self._train_steps(stage, state.step, engine, instruments, checkpoint_inside)
            stopped = trace.stopped
            if trace.next_step == stage.end_step:
                after = state_at(trace.next_step)
                self._end_stage(stage, after, engine, trace, telemetry)
                stopped = stopped or instruments.stop.asked_now()
                if not stopped:
                    return after
            telemetry.event("stopped", {"step": trace.next_step - 1})
            return None
        finally:
            engine.close()

    # ---- its steps ---------------------------------------------------------------------------

    def _begin_stage(self, stage: Stage, state: TrainingState) -> TrainingState:
        """The state that the stage starts from: grown weights, and moments carried or dropped."""
        if stage.index == 1:
            return state
        weights, optimizer_state = state.weights, state.optimizer_state
        each = self.config.model.layers_per_block
        blocks = self.plan.stages[stage.index - 2].depth // each, stage.depth // each
        family = self._family
        shapes = family.parameter_shapes(self._hf_config(stage.depth))
        period = family.period(self.config.model)
        policy = self.config.optimizer.state
        if policy == "reset":
            optimizer_state = {}
        if stage.init != "keep":
            weights = grow(
                weights,
                *blocks,
                stage.init,
                fresh=self._fresh_parameter,
                shapes=shapes,
                layer_prefix=family.blocks,
                period=period,
            )
            optimizer_state = grow_optimizer_state(
                optimizer_state,
                *blocks,
                stage.init,
                copy=policy == "copy",
                shapes=shapes,
                layer_prefix=family.blocks,
                period=period,
            )
        return replace(state, weights=weights, optimizer_state=optimizer_state)

    def _fresh_parameter(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return fresh_parameter(name, shape, seed=self.config.seed, final=self._final_hf_config)

    def _engine(self, stage: Stage, state: TrainingState, meter: TrafficMeter) -> StageEngine:
        train = self.config.train
        model = StageModel.build(
            self._hf_config(stage.depth),
            self.config.data.objective,
            stage.frozen_layers,
            state.weights,
            frozen_dropout=train.frozen_dropout == "on",
            dtype=_DTYPES[train.precision],
            device=self.device,
        )
        accumulation = train.global_batch_size // (stage.micro_batch_size * self.world.world_size)
        settings = EngineSettings(
            optimizer=self.config.optimizer,
            deepspeed=self.recipe.deepspeed,
            precision=train.precision,
            gradient_clipping=train.gradient_clipping,
            micro_batch_size=stage.micro_batch_size,
            gradient_accumulation_steps=accumulation,
        )
        return StageEngine(
            model, settings, state.weights, state.optimizer_state, state.loss_scale, meter
        )

    def _train_steps(
        self,
        stage: Stage,
        first_step: int,
        engine: StageEngine,
        instruments: _Instruments,
        checkpoint_at: Callable[[int], None],
    ) -> StageTrace:
        done = first_step - stage.start_step
        batches = self._batches(
            self.store,
            stage,
            start_step=stage.data_start_step + done,
            num_steps=stage.steps - done,
        )
        return train_steps(
            engine,
            batches,
            first_step=first_step,
            settings=LoopSettings(
                seed=self.config.seed,
                device=self.device,
                log_every_steps=self.config.telemetry.log_every_steps,
                checkpoint_every_steps=self.config.checkpoint.every_steps,
                losses=self.config.data.objective.losses,
            ),
            learning_rate=lambda step: learning_rate(self.config, self.plan, step),
            stop=instruments.stop,
            traffic=instruments.meter.traffic,
            log=lambda step, metrics: instruments.telemetry.log(
                step, {"stage": stage.index} | metrics
            ),
            checkpoint=checkpoint_at,
        )

    def _batches(
        self, store: TokenStore, stage: Stage, *, start_step: int, num_steps: int
    ) -> Iterator[GlobalBatch]:
        data = self.config.data
        options = InstanceOptions(
            seq_length=stage.seq_length,
            max_predictions=self.config.max_predictions(stage.seq_length),
            masked_lm_prob=data.masked_lm_prob,
            short_seq_prob=data.short_seq_prob,
            input_format=data.input_format,
            masking=data.masking,
        )
        return global_batches(
            store,
            options,
            data.objective,
            seed=self.config.seed,
            global_batch_size=self.config.train.global_batch_size,
            micro_batch_size=stage.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.world_size,
            start_step=start_step,
            num_steps=num_steps,
            num_workers=data.num_workers,
            device=self.device,
            say=partial(print, flush=True),
        )

    def _end_stage(
        self,
        stage: Stage,
        state: TrainingState,
        engine: StageEngine,
        trace: StageTrace,
        telemetry: Telemetry,
    ) -> None:
        """Held-out losses, the boundary's weights, a checkpoint: in this order, so that a kill
        between them repeats the stage's last steps and nothing is missing afterwards."""
        fields = self._stage_fields(stage) | {"step": stage.end_step - 1}
        if trace.step_seconds:
            fields["median_step_seconds"] = statistics.median(trace.step_seconds)
        if self.eval_store is not None:
            fields |= evaluate_losses(
                engine,
                self._eval_batches(self.eval_store, stage),
                self.device,
                self.config.data.objective.losses,
            )
        telemetry.event("stage_end", fields)
        self._save_model(f"stages/{stage.index}/end", stage.depth, state.weights)
        self._checkpoint(state)

    def _eval_batches(self, eval_store: TokenStore, stage: Stage) -> Iterator[GlobalBatch]:
        num_steps = -(-self.config.evaluation.instances // self.config.train.global_batch_size)
        return self._batches(eval_store, stage, start_step=0, num_steps=num_steps)

    # ---- what it writes (rank 0 alone) -------------------------------------------------------

    def _checkpoint(self, state: TrainingState) -> None:
        if self.world.is_main:
            self.checkpoints.save(state, self._fingerprint)

    def _save_model(self, folder: str, depth: int, weights: Weights) -> None:
        """The whole model in Hugging Face's format at `folder` under the run folder."""
        if not self.world.is_main:
            return
        save_weights(
            self.config.run_dir / folder, weights, self._hf_config(depth), self.store.tokenizer_dir
        )

    def _write_description(self) -> None:
        if not self.world.is_main:
            return
        folder = self.config.run_dir
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "recipe.yaml", self.config.to_yaml())
        replace_text(folder / "plan.json", json.dumps(self._description, indent=1) + "\n")

    def _export(self, state: TrainingState, telemetry: Telemetry) -> None:
        self._save_model("model", self.plan.stages[-1].depth, state.weights)
        telemetry.event(
            "run_end",
            {
                "step": self.plan.total_steps,
                "model": str(self.config.run_dir / "model"),
                "unigram_entropy": self.store.unigram_entropy(),
            },
        )
