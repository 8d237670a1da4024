"""The plan of a run: which layers exist and train, for how many steps, stage after stage.

A pure value: no torch, no file, no process. The trainer, the schedule and the cost table know of a
method what the plan says, and never ask which method it was.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One run of one engine. Steps count optimizer steps; layers count from the bottom."""

    index: int  # 1-based
    depth: int  # transformer layers that exist
    trainable_layers: int  # of these, counted from the top
    steps: int
    start_step: int  # global step of this stage's first step
    data_start_step: int  # earlier steps of the run at the same seq_length
    seq_length: int  # tokens
    micro_batch_size: int  # instances per rank and micro-step
    init: str  # "fresh", "pretrained", "keep", or the growth operator that made the new layers
    learning_rate_factor: float = 1.0
    warmup_steps: int = 0  # own warm-up, counted from the start of the learning-rate segment
    continues: bool = False  # the stage before at another length: the same learning-rate segment

    @property
    def frozen_layers(self) -> int:
        return self.depth - self.trainable_layers

    @property
    def train_embeddings(self) -> bool:
        """Embeddings (and the MLM decoder tied to them) train iff every layer does."""
        return self.frozen_layers == 0

    @property
    def end_step(self) -> int:
        """The global step after this stage's last."""
        return self.start_step + self.steps


@dataclass(frozen=True)
class Plan:
    """The whole schedule: stages without a gap from step 0 to `total_steps`."""

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
