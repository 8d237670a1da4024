"""GLUE as the hub's script-free data set, or as a local copy of it.

The dataset has a configuration for each task (`cola`, `sst2`, ...), class numbers for labels and -1
for hidden test labels. Source: its dataset card, which lists configurations, splits and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mslt_ds.errors import DataError, EnvironmentProblem
from mslt_ds.evaluation.glue.examples import Examples, LabelledExamples
from mslt_ds.evaluation.glue.tasks import Split, Task

DATASET = "nyu-mll/glue"
SAVED = "dataset_dict.json"
"""A file that `save_to_disk` writes into the folder of a configuration."""
PARQUET = "*.parquet"
"""The files of a configuration in the hub's repository."""

Open = Callable[[str], Any]
"""Maps the name of a configuration to its splits by name."""


def open_repository(source: str) -> Open:
    """Opens configurations from the hub or its local cache, or from a copy of the repository.

    source: `DATASET`, or a folder with the repository's card README.md and its Parquet files
    """
    datasets = _library()

    def open_config(name: str) -> Any:
        try:
            return datasets.load_dataset(source, name)
        except Exception as error:
            remedy = (
                "check the network, or take GLUE's own files: --data DIR"
                if source == DATASET
                else f"the folder has to be a whole copy of the hub's {DATASET}, README.md included"
            )
            raise DataError(
                f"--data: {source} ({name}) can't be had: {type(error).__name__}: {error}; {remedy}"
            ) from error

    return open_config


def open_saved(folder: Path) -> Open:
    """Opens configurations from `folder/CONFIGURATION`, as `save_to_disk` writes them."""
    datasets = _library()

    def open_config(name: str) -> Any:
        if not (folder / name / SAVED).is_file():
            raise DataError(
                f"{folder / name}: no saved dataset; save it there by "
                f'load_dataset("{DATASET}", "{name}").save_to_disk'
            )
        return datasets.load_from_disk(folder / name)

    return open_config


def read_split(open_config: Open, task: Task, split: Split) -> LabelledExamples:
    """A labelled split (train or dev) of a task. DataError names the row."""
    name = task.hub_config
    data = _columns(open_config, name, split, (*task.hub_texts, "label"))
    labels = list(data["label"])
    _check_labels(labels, task, f"{name}, {split.hub_split}")
    texts = _texts(data, task, f"{name}, {split.hub_split}")
    return LabelledExamples(texts=texts, labels=labels, ids=[str(n) for n in range(len(texts))])


def read_test(open_config: Open, task: Task, split: Split, config: str) -> Examples:
    """A test split of a configuration, without labels. `idx` numbers the rows."""
    data = _columns(open_config, config, split, (*task.hub_texts, "idx"))
    texts = _texts(data, task, f"{config}, {split.hub_split}")
    return Examples(texts=texts, ids=[str(number) for number in data["idx"]])


def _columns(open_config: Open, name: str, split: Split, columns: tuple[str, ...]) -> Any:
    """The rows of a split; DataError if it lacks one of `columns`."""
    splits = open_config(name)
    if split.hub_split not in splits:
        raise DataError(f"{name}: no split {split.hub_split}; it has {', '.join(splits)}")
    data = splits[split.hub_split]
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise DataError(
            f"{name}, {split.hub_split}: no column {', '.join(missing)}; it has "
            f"{', '.join(data.column_names)}"
        )
    return data


def _check_labels(labels: list[Any], task: Task, place: str) -> None:
    for row, label in enumerate(labels):
        if task.is_regression:
            fits = isinstance(label, int | float) and 0 <= label <= 5
        else:
            fits = isinstance(label, int) and 0 <= label < len(task.labels)
        if not fits:
            allowed = "0 to 5" if task.is_regression else f"0 to {len(task.labels) - 1}"
            raise DataError(f"{place}, row {row}: label {label!r}; it has to be {allowed}")


def _texts(data: Any, task: Task, place: str) -> list[tuple[str, ...]]:
    texts = list(zip(*(data[column] for column in task.hub_texts), strict=True))
    for row, fields in enumerate(texts):
        for column, text in zip(task.hub_texts, fields, strict=True):
            if not isinstance(text, str):
                raise DataError(f"{place}, row {row}: {column} is {text!r}; it has to be text")
    return texts


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise EnvironmentProblem(
            "the hub's form of GLUE needs the package datasets; install the extra: "
            "pip install 'mslt-ds[eval]'"
        ) from error
    return datasets
