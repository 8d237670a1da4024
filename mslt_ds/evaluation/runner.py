"""What GLUE and SQuAD have in common: a model is fine-tuned on a cell's task and then scored."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from mslt_ds.evaluation.batches import training_batches
from mslt_ds.evaluation.encoded import Encoded
from mslt_ds.evaluation.encoder import Encoder
from mslt_ds.evaluation.finetune import Batch, Loss, Settings, fine_tune
from mslt_ds.evaluation.grid import Cell
from mslt_ds.evaluation.recipe import FineTuning
from mslt_ds.evaluation.results import Columns, Constants

Recipe = TypeVar("Recipe", bound=FineTuning)
OnStep = Callable[[float, str], None]
"""Called with the share of the cell's steps that is done, from 0 to 1, and a text about them."""


@dataclass
class Runner(ABC, Generic[Recipe]):
    """Runs the cells of one model on one device."""

    encoder: Encoder
    recipe: Recipe
    device: torch.device

    @abstractmethod
    def check(self) -> list[str]:
        """Build the model and check the data against it, so that a model which can't be used fails
        before any training. Returns notes for the user."""

    @abstractmethod
    def columns(self) -> Columns:
        """The columns of each task's results and their metrics."""

    @abstractmethod
    def constants(self) -> Constants:
        """The scores of the best constant answer, for tasks where one makes sense."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """For each task, a digest of everything that its cells' scores depend on."""

    @abstractmethod
    def work(self) -> dict[str, float]:
        """The work of one run of each task, in one unit for all tasks."""

    @abstractmethod
    def epochs(self, task: str) -> int:
        """Epochs of a run."""

    @abstractmethod
    def train_examples(self, task: str) -> int:
        """Training examples of a task, as results report them."""

    @abstractmethod
    def train_split(self, task: str) -> Encoded:
        """The training split of a task as token ids with labels."""

    @abstractmethod
    def loss_of(self, task: str) -> Loss:
        """The training loss of a task."""

    @abstractmethod
    def build_on_cpu(self, task: str, seed: int) -> tuple[nn.Module, list[str]]:
        """The model with a head for the task, and the names of its newly initialized parameters."""

    @abstractmethod
    def score(self, cell: Cell, model: nn.Module) -> dict[str, Any]:
        """Evaluate a fine-tuned model: `scores` by column and metric, and what else its file holds."""

    @abstractmethod
    def summary(self, scores: Mapping[str, Mapping[str, float]]) -> str:
        """A cell's scores in one line."""

    @property
    def description(self) -> dict[str, Any]:
        """The head of results.json."""
        return {"model": str(self.encoder.path), "digest": self.encoder.digest, "quick": False}

    def build(self, task: str, seed: int) -> nn.Module:
        """The model with a head for the task, on the device."""
        return self.build_on_cpu(task, seed)[0].to(self.device)

    def steps(self, task: str) -> int:
        """Optimizer steps of a run."""
        per_epoch = math.ceil(len(self.train_split(task)) / self.recipe.batch_size)
        return per_epoch * self.epochs(task)

    def batches(self, cell: Cell) -> Iterator[Batch]:
        """All training batches of a cell, epoch after epoch."""
        train = self.train_split(cell.task)
        for epoch in range(self.epochs(cell.task)):
            for rows in training_batches(train.lengths, self.recipe.batch_size, cell.seed, epoch):
                yield train.batch(rows)

    def sample_steps(self, cell: Cell, count: int) -> tuple[nn.Module, list[Batch], Loss]:
        """A model, `count` batches of evenly spread lengths, and the loss, to time steps with."""
        train = self.train_split(cell.task)
        batches = training_batches(train.lengths, self.recipe.batch_size, cell.seed, 0)
        batches.sort(key=lambda rows: max(train.lengths[row] for row in rows))
        middles = [(2 * index + 1) * len(batches) // (2 * count) for index in range(count)]
        model = self.build(cell.task, cell.seed)
        return model, [train.batch(batches[middle]) for middle in middles], self.loss_of(cell.task)

    def train(self, cell: Cell, on_step: OnStep) -> tuple[nn.Module, float]:
        """The cell's fine-tuned model and its last training loss."""
        model = self.build(cell.task, cell.seed)
        steps = self.steps(cell.task)
        loss = fine_tune(
            model,
            self.batches(cell),
            self.loss_of(cell.task),
            Settings.of(self.recipe, cell.learning_rate, cell.seed, steps),
            lambda step, loss: on_step(step / steps, f"step {step:,}/{steps:,}  loss {loss:.3f}"),
        )
        return model, loss

    def run(self, cell: Cell, on_step: OnStep) -> dict[str, Any]:
        """Fine-tune and score one cell. Returns the content of its file."""
        began = time.monotonic()
        model, loss = self.train(cell, on_step)
        trained = time.monotonic()
        return self.score(cell, model) | {
            "train_loss": loss,
            "train_examples": self.train_examples(cell.task),
            "train_seconds": round(trained - began, 3),
            "evaluation_seconds": round(time.monotonic() - trained, 3),
        }
