"""Fine-tuning on GLUE: reading the data, and scoring a cell.

The data of all tasks is read and checked before any training. A task is tokenized once for all of its
cells that a process runs in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoModelForSequenceClassification

from mslt_ds.evaluation import text_files
from mslt_ds.evaluation.batches import evaluation_batches, sample
from mslt_ds.evaluation.cells import fingerprint
from mslt_ds.evaluation.encoded import Encoded, LabelledEncoded
from mslt_ds.evaluation.encoder import check_max_length, fresh_note
from mslt_ds.evaluation.finetune import Batch, Loss, predict
from mslt_ds.evaluation.glue import hub, tsv
from mslt_ds.evaluation.glue.examples import Examples, LabelledExamples, encode, encode_labelled
from mslt_ds.evaluation.glue.metrics import constant_scores, scores
from mslt_ds.evaluation.glue.recipe import GlueRecipe
from mslt_ds.evaluation.glue.tasks import DIAGNOSTIC, TASKS, Split, Task
from mslt_ds.evaluation.grid import Cell
from mslt_ds.evaluation.results import METRIC_NAMES, Columns, Constants, percent
from mslt_ds.evaluation.runner import Runner


@dataclass(frozen=True)
class TaskData:
    """A task's labelled splits: the sampled training split, and the dev splits by name."""

    task: Task
    train: LabelledExamples
    dev: dict[str, LabelledExamples]

    def fingerprint(self) -> str:
        return fingerprint(
            *([part.texts, part.labels] for part in (self.train, *self.dev.values()))
        )


@dataclass(frozen=True)
class Source:
    """Where GLUE is read from. data: `hub`, or the folder of a copy of the hub's repository, of saved
    data sets, or of GLUE's own files."""

    data: str

    @property
    def _open(self) -> hub.Open | None:
        if self.data == "hub":
            return hub.open_repository(hub.DATASET)
        folder = Path(self.data)
        if any(folder.glob(f"*/{hub.SAVED}")):
            return hub.open_saved(folder)
        if any(folder.glob(f"*/{hub.PARQUET}")):
            return hub.open_repository(self.data)
        return None

    def read(self, task: Task, recipe: GlueRecipe) -> TaskData:
        """A task's train and dev splits."""
        open_config = self._open

        def read_split(split: Split) -> LabelledExamples:
            if open_config is None:
                return tsv.read_split(Path(self.data), task, split)
            return hub.read_split(open_config, task, split)

        train = read_split(task.train)
        rows = sample(len(train), recipe.train_examples, seed=0)
        train = LabelledExamples(
            texts=[train.texts[row] for row in rows],
            labels=[train.labels[row] for row in rows],
            ids=[train.ids[row] for row in rows],
        )
        return TaskData(task, train, {split.name: read_split(split) for split in task.dev})

    def read_tests(self, task: Task) -> dict[str, Examples]:
        """A task's test splits by the name of their file in a submission. MNLI includes the diagnostic set,
        if there is one."""
        open_config, folder = self._open, Path(self.data)

        def read_test(split: Split, hub_config: str, tsv_folder: str) -> Examples:
            if open_config is None:
                return tsv.read_test(folder, task, split, tsv_folder)
            return hub.read_test(open_config, task, split, hub_config)

        tests = {split.name: read_test(split, task.hub_config, task.folder) for split in task.test}
        if task.name == "MNLI":
            files = folder / DIAGNOSTIC.file / f"{DIAGNOSTIC.file}.tsv"
            if self.data == "hub" or (folder / "ax").is_dir() or text_files.find(files):
                tests[DIAGNOSTIC.name] = read_test(DIAGNOSTIC, "ax", DIAGNOSTIC.file)
        return tests


@dataclass
class GlueRunner(Runner[GlueRecipe]):
    """Fine-tunes on GLUE's tasks. It keeps the token ids of the last task."""

    data: dict[str, TaskData]
    quick: bool = False
    _encoded: tuple[str, LabelledEncoded, dict[str, LabelledEncoded]] | None = field(
        default=None, repr=False
    )

    def fingerprints(self) -> dict[str, str]:
        return {
            name: fingerprint(
                self.encoder.digest, self.recipe.what_scores_depend_on(name), data.fingerprint()
            )
            for name, data in self.data.items()
        }

    def work(self) -> dict[str, float]:
        """The characters that a run of each task reads, to which its time is roughly proportional."""
        return {
            name: float(data.train.characters * self.recipe.epochs_for(name))
            for name, data in self.data.items()
        }

    @property
    def description(self) -> dict[str, Any]:
        return super().description | {"quick": self.quick}

    def columns(self) -> Columns:
        return {
            name: {split.name: task.metrics for split in task.dev}
            for name, task in TASKS.items()
            if name in self.data
        }

    def constants(self) -> Constants:
        return {
            name: {
                split: constant_scores(data.task, torch.tensor(examples.labels))
                for split, examples in data.dev.items()
            }
            for name, data in self.data.items()
        }

    def check(self) -> list[str]:
        # One task for each number of labels: a head in the folder may fit only some tasks.
        tasks = {len(data.task.labels): data.task for data in self.data.values()}
        notes = []
        for task in tasks.values():
            model, fresh = self.build_on_cpu(task.name, seed=0)
            check_max_length(model, self.encoder, self.recipe.max_length)
            notes.append(fresh_note(fresh))
        return list(dict.fromkeys(notes))

    def build_on_cpu(self, task: str, seed: int) -> tuple[nn.Module, list[str]]:
        one = self.data[task].task
        labels = 1 if one.is_regression else len(one.labels)
        return self.encoder.build(AutoModelForSequenceClassification, seed, num_labels=labels)

    def epochs(self, task: str) -> int:
        return self.recipe.epochs_for(task)

    def train_examples(self, task: str) -> int:
        return len(self.data[task].train)

    def train_split(self, task: str) -> LabelledEncoded:
        _, train, _ = self.encoded(task)
        return train

    def loss_of(self, task: str) -> Loss:
        return regression_loss if self.data[task].task.is_regression else classification_loss

    def score(self, cell: Cell, model: nn.Module) -> dict[str, Any]:
        _, _, dev = self.encoded(cell.task)
        task = self.data[cell.task].task
        found = {
            name: scores(task, self.outputs(model, split), split.labels)
            for name, split in dev.items()
        }
        return {"scores": found}

    def summary(self, scores: Mapping[str, Mapping[str, float]]) -> str:
        return ", ".join(
            f"{name} {METRIC_NAMES[metric]} {percent(value)}"
            for name, metrics in scores.items()
            for metric, value in metrics.items()
        )

    def encoded(self, task: str) -> tuple[str, LabelledEncoded, dict[str, LabelledEncoded]]:
        """A task's name, and its train and dev splits as token ids."""
        if self._encoded is None or self._encoded[0] != task:
            data = self.data[task]

            def encode_split(split: LabelledExamples) -> LabelledEncoded:
                return encode_labelled(
                    split, self.encoder.tokenizer, self.recipe.max_length, data.task.is_regression
                )

            dev = {name: encode_split(split) for name, split in data.dev.items()}
            self._encoded = task, encode_split(data.train), dev
        return self._encoded

    def encode(self, examples: Examples) -> Encoded:
        """A test split as token ids."""
        return encode(examples, self.encoder.tokenizer, self.recipe.max_length)

    def outputs(self, model: nn.Module, split: Encoded) -> Tensor:
        """(rows, classes) logits, or (rows, 1) scores."""
        batches = evaluation_batches(split.lengths, self.recipe.eval_batch_size)
        return predict(model, batches, split.batch, logits_of, self.recipe.precision)


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).logits


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of (rows, classes) logits."""
    labels = batch.pop("labels")
    return cross_entropy(logits_of(model, batch).float(), labels)


def regression_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of (rows, 1) predictions."""
    labels = batch.pop("labels")
    return mse_loss(logits_of(model, batch).float().squeeze(-1), labels)
