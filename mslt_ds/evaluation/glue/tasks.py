"""The GLUE tasks: files, columns, labels and metrics of each, as plain values.

Source: Wang et al. 2019, "GLUE", table 1, and the layout of its published files. The main metric of each
task follows the paper: F1 for QQP and MRPC, Spearman for STS-B, Matthews for CoLA,
accuracy for the rest. WNLI is left out, as in BERT and in the paper; the test server still expects a
file for it (submission.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mslt_ds.errors import RecipeError


@dataclass(frozen=True)
class Split:
    """A file of a task.

    name: of its column in a table and, for a test split, of its file in a submission
    file: in the official layout, without `.tsv`
    hub_split: its name in the hub's data set
    """

    name: str
    file: str
    hub_split: str


@dataclass(frozen=True)
class Task:
    """One GLUE task.

    folder: of its files in the official layout
    hub_config: its configuration in the hub's data set
    texts: the one or two text columns of train and dev files
    hub_texts: the text columns in the hub's data set
    label: the label's column
    columns: of train and dev files, if they have no header
    labels: in the order of the hub's class numbers; empty for a regression task
    metrics: the main one first
    cut_rows: how many rows of the official files are broken by a line break inside a question
    """

    name: str
    folder: str
    hub_config: str
    texts: tuple[str, ...]
    hub_texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    dev: tuple[Split, ...]
    test: tuple[Split, ...]
    columns: tuple[str, ...] = ()
    cut_rows: int = 0

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def train(self) -> Split:
        return Split(self.name, "train", "train")


def _plain(name: str) -> tuple[tuple[Split, ...], tuple[Split, ...]]:
    """The dev and test splits of a task that has one of each."""
    return (Split(name, "dev", "validation"),), (Split(name, "test", "test"),)


def _task(name: str, hub_config: str, **fields) -> Task:
    dev, test = _plain(name)
    return Task(
        **(
            {"name": name, "folder": name, "hub_config": hub_config, "dev": dev, "test": test}
            | fields
        )
    )


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")

TASKS = {
    task.name: task
    for task in (
        _task(
            "CoLA", "cola", texts=("sentence",), hub_texts=("sentence",), label="label",
            labels=_BINARY, metrics=("matthews", "accuracy"),
            columns=("source", "label", "star", "sentence"),
        ),
        _task(
            "SST-2", "sst2", texts=("sentence",), hub_texts=("sentence",), label="label",
            labels=_BINARY, metrics=("accuracy",),
        ),
        _task(
            "MRPC", "mrpc", texts=("#1 String", "#2 String"), hub_texts=("sentence1", "sentence2"),
            label="Quality", labels=_BINARY, metrics=("f1", "accuracy"),
        ),
        _task(
            "STS-B", "stsb", texts=("sentence1", "sentence2"), hub_texts=("sentence1", "sentence2"),
            label="score", labels=(), metrics=("spearman", "pearson"),
        ),
        _task(
            "QQP", "qqp", texts=("question1", "question2"), hub_texts=("question1", "question2"),
            label="is_duplicate", labels=_BINARY, metrics=("f1", "accuracy"), cut_rows=64,
        ),
        _task(
            "MNLI", "mnli", texts=("sentence1", "sentence2"), hub_texts=("premise", "hypothesis"),
            label="gold_label", labels=_MNLI, metrics=("accuracy",),
            dev=(
                Split("MNLI-m", "dev_matched", "validation_matched"),
                Split("MNLI-mm", "dev_mismatched", "validation_mismatched"),
            ),
            test=(
                Split("MNLI-m", "test_matched", "test_matched"),
                Split("MNLI-mm", "test_mismatched", "test_mismatched"),
            ),
        ),
        _task(
            "QNLI", "qnli", texts=("question", "sentence"), hub_texts=("question", "sentence"),
            label="label", labels=_ENTAILMENT, metrics=("accuracy",),
        ),
        _task(
            "RTE", "rte", texts=("sentence1", "sentence2"), hub_texts=("sentence1", "sentence2"),
            label="label", labels=_ENTAILMENT, metrics=("accuracy",),
        ),
    )
}  # fmt: skip
"""By name, in the order in which GLUE's paper lists them."""

DIAGNOSTIC = Split("AX", "diagnostic", "test")
"""GLUE's diagnostic set: MNLI's labels, test only, in the folder `diagnostic`."""


def choose(names: Sequence[str]) -> list[Task]:
    """The tasks with these names, or all tasks for "all". RecipeError for an unknown name."""
    if list(names) == ["all"]:
        return list(TASKS.values())
    by_lower = {name.lower(): task for name, task in TASKS.items()}
    for name in names:
        if name.lower() not in by_lower:
            raise RecipeError(f"--tasks: {name}; choose all, or some of {', '.join(TASKS)}")
    return [by_lower[name] for name in dict.fromkeys(name.lower() for name in names)]
