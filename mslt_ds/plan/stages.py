"""The plan of a run: which layers exist and train, on which batches, for how many steps.

A plan is a pure value without torch, files or processes. The trainer, the schedule and the cost
table read the stages and never ask which method made them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import RecipeError

GLOBAL_BATCH_SIZE_KEY = "train.global_batch_size"
MICRO_BATCH_SIZE_KEY = "train.micro_batch_size"


@dataclass(frozen=True)
class Draft:
    """A stage before it has its place in a plan: what a method says of it. Layers count from the bottom."""

    depth: int  # transformer layers that exist
    trainable_layers: int  # of these; 0: embeddings and heads alone train
    train_embeddings: bool  # and with them the MLM decoder, which is tied to them
    steps: int  # optimizer steps
    seq_length: int  # tokens
    micro_batch_size: int  # instances per rank and micro-step
    global_batch_size: int  # instances per step
    masked_lm_prob: float  # share of the tokens to predict
    init: str  # the growth operator that makes new layers
    learning_rate_factor: float = 1.0
    freeze: Literal["bottom", "top"] = "bottom"  # where the layers lie that don't train
    warmup_steps: int = 0  # own warm-up, counted from the start of the learning-rate segment
    continues: bool = False  # the stage before at another length: the same learning-rate segment
    # The recipe's keys that gave the values, for messages.
    seq_length_key: str = "data.seq_length"
    global_batch_size_key: str = GLOBAL_BATCH_SIZE_KEY
    micro_batch_size_key: str = MICRO_BATCH_SIZE_KEY

    @property
    def frozen_layers(self) -> int:
        return self.depth - self.trainable_layers

    @property
    def trained(self) -> range:
        """The layers that train."""
        first = 0 if self.freeze == "top" else self.frozen_layers
        return range(first, first + self.trainable_layers)


@dataclass(frozen=True, kw_only=True)
class Stage(Draft):
    """The steps that one engine does. `init` is "fresh", "pretrained", "keep" or the growth operator that
    made the new layers."""

    index: int  # 1-based
    start_step: int  # global step of this stage's first step
    first_instance: int  # instances that earlier stages of the same seq_length took

    @property
    def end_step(self) -> int:
        """The global step after this stage's last."""
        return self.start_step + self.steps

    def instance_at(self, step: int) -> int:
        """The first instance of global step `step`, in the sequence at this seq_length."""
        return self.first_instance + (step - self.start_step) * self.global_batch_size

    @property
    def end_instance(self) -> int:
        """The instance of the sequence at this seq_length after this stage's last."""
        return self.instance_at(self.end_step)

    @property
    def tokens_per_step(self) -> int:
        """Positions of a global batch, padding included."""
        return self.global_batch_size * self.seq_length

    def gradient_accumulation_steps(self, world_size: int) -> int:
        """Micro-steps of one step on each rank. RecipeError that names the offending keys if the ranks
        can't share the global batch evenly."""
        at_once = self.micro_batch_size * world_size
        steps, rest = divmod(self.global_batch_size, at_once)
        if steps and not rest:
            return steps
        below, above = steps * at_once, (steps + 1) * at_once
        micro_batch = f"{self.micro_batch_size_key} {self.micro_batch_size}"
        product = (
            f"{at_once} ({world_size} ranks x {micro_batch})" if world_size > 1 else micro_batch
        )
        by_plan = self.global_batch_size_key != GLOBAL_BATCH_SIZE_KEY
        place = f" in stage {self.index}" if by_plan else ""
        raise RecipeError(
            f"{self.global_batch_size_key}: {self.global_batch_size}{place} is not a multiple of "
            f"{product}; choose {f'{below} or {above}' if below else above}, or other ranks or "
            "micro-batches"
        )


@dataclass(frozen=True)
class Plan:
    """All stages of a run, without a gap from step 0 to `total_steps`."""

    stages: tuple[Stage, ...]

    @property
    def total_steps(self) -> int:
        return self.stages[-1].end_step

    def stage_at(self, step: int) -> Stage:
        """The stage that global step `step` (0-based) belongs to."""
        for stage in self.stages:
            if stage.start_step <= step < stage.end_step:
                return stage
        raise IndexError(f"step {step} is outside of the plan's 0 to {self.total_steps - 1}")

    def segment_at(self, step: int) -> tuple[int, int]:
        """First step and end of the learning-rate segment around `step`.

        A segment is a stage with the stages that continue it at another sequence length.
        """
        first = last = self.stage_at(step).index - 1
        while self.stages[first].continues:
            first -= 1
        while last + 1 < len(self.stages) and self.stages[last + 1].continues:
            last += 1
        return self.stages[first].start_step, self.stages[last].end_step


def held_out(config: RunConfig, stage: Stage) -> Stage:
    """What the stage's model is evaluated on: batches of the first held-out instances.

    They depend on the recipe and on the stage's seq_length alone, not on its global batch size or
    masked share, so that the losses of all stages at one seq_length are comparable. Their number is
    `evaluation.instances`, rounded up to whole batches.
    """
    batch = config.train.global_batch_size
    return replace(
        stage,
        first_instance=0,
        steps=-(-config.evaluation.instances // batch),
        global_batch_size=batch,
        global_batch_size_key=GLOBAL_BATCH_SIZE_KEY,
        masked_lm_prob=config.data.masked_lm_prob,
    )
