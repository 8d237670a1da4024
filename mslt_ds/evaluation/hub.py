"""GLUE as the hub's script-free dataset, or a saved copy of it on this machine.

The dataset has a configuration for each task (`cola`, `sst2`, ...), class numbers for labels and -1
where a test label is hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mslt_ds.errors import DataError, EnvironmentProblem
from mslt_ds.evaluation.tasks import Examples, Split, Task

DATASET = "nyu-mll/glue"
SAVED = "dataset_dict.json"

Open = Callable[[str], Any]
"""A configuration's name to its splits by name."""


def open_hub() -> Open:
    """From the hub, or from the cache that an earlier download left."""
    datasets = _library()

    def open_config(name: str) -> Any:
        try:
            return datasets.load_dataset(DATASET, name)
        except Exception as error:
            raise DataError(
                f"--data hub: {DATASET} ({name}) can't be had: {type(error).__name__}: {error}; "
                "check the network, or take GLUE's own files: --data DIR"
            ) from error

    return open_config


def open_saved(folder: Path) -> Open:
    """From `folder/CONFIGURATION`, each written by `save_to_disk`."""
    datasets = _library()

    def open_config(name: str) -> Any:
        if not (folder / name / SAVED).is_file():
            raise DataError(
                f"{folder / name}: no saved dataset; save it there by "
                f'load_dataset("{DATASET}", "{name}").save_to_disk'
            )
        return datasets.load_from_disk(folder / name)

    return open_config


def read_split(open_config: Open, task: Task, split: Split, config: str | None = None) -> Examples:
    """A split of a task; its labels are left out where they are hidden."""
    name = config or task.hub_config
    splits = open_config(name)
    if split.hub_split not in splits:
        raise DataError(f"{name}: no split {split.hub_split}; it has {', '.join(splits)}")
    data = splits[split.hub_split]
    missing = [column for column in (*task.hub_texts, "label") if column not in data.column_names]
    if missing:
        raise DataError(
            f"{name}, {split.hub_split}: no column {', '.join(missing)}; it has "
            f"{', '.join(data.column_names)}"
        )
    texts = list(zip(*(data[column] for column in task.hub_texts), strict=True))
    labels = list(data["label"])
    numbers = data["idx"] if "idx" in data.column_names else range(len(texts))
    hidden = not task.is_regression and set(labels) == {-1}
    if split in task.test or hidden:
        labels = []
    _check_labels(labels, task, f"{name}, {split.hub_split}")
    _check_texts(texts, task, f"{name}, {split.hub_split}")
    return Examples(texts=texts, labels=labels, ids=[str(number) for number in numbers])


def _check_labels(labels: list[Any], task: Task, place: str) -> None:
    for row, label in enumerate(labels):
        if task.is_regression:
            fits = isinstance(label, int | float) and 0 <= label <= 5
        else:
            fits = isinstance(label, int) and 0 <= label < len(task.labels)
        if not fits:
            allowed = "0 to 5" if task.is_regression else f"0 to {len(task.labels) - 1}"
            raise DataError(f"{place}, row {row}: label {label!r}; it has to be {allowed}")


def _check_texts(texts: list[tuple[Any, ...]], task: Task, place: str) -> None:
    for row, fields in enumerate(texts):
        for column, text in zip(task.hub_texts, fields, strict=True):
            if not isinstance(text, str):
                raise DataError(f"{place}, row {row}: {column} is {text!r}; it has to be a text")


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise EnvironmentProblem(
            "the hub's form of GLUE needs the package datasets; install the extra: "
            "pip install 'mslt-ds[eval]'"
        ) from error
    return datasets
