"""The hub's form of GLUE, saved on this machine or copied whole, is read as the official files are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, config

from mslt_ds.errors import DataError
from mslt_ds.evaluation.glue import hub, tsv
from mslt_ds.evaluation.glue.examples import Examples, LabelledExamples
from mslt_ds.evaluation.glue.recipe import GlueRecipe
from mslt_ds.evaluation.glue.runs import Source
from mslt_ds.evaluation.glue.tasks import DIAGNOSTIC, TASKS, Task


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """The library's cache of read files, away from the user's."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(cache))


def features(task: Task) -> Features:
    """The dataset card's types."""
    label = Value("float32") if task.is_regression else ClassLabel(names=list(task.labels))
    texts = {name: Value("string") for name in task.hub_texts}
    return Features(texts | {"label": label, "idx": Value("int32")})


def as_dataset(task: Task, rows: Examples) -> Dataset:
    columns = dict(zip(task.hub_texts, map(list, zip(*rows.texts, strict=True)), strict=True))
    hidden = [-1.0 if task.is_regression else -1] * len(rows)
    labels = rows.labels if isinstance(rows, LabelledExamples) else hidden
    numbers = [int(number) for number in rows.ids]
    return Dataset.from_dict(columns | {"label": labels, "idx": numbers}, features(task))


def as_hub(glue_folder: Path, task: Task) -> DatasetDict:
    """The dataset that the official files come to."""
    splits = DatasetDict()
    for split in (task.train, *task.dev):
        splits[split.hub_split] = as_dataset(task, tsv.read_split(glue_folder, task, split))
    for split in task.test:
        rows = tsv.read_test(glue_folder, task, split, task.folder)
        splits[split.hub_split] = as_dataset(task, rows)
    return splits


@pytest.fixture(scope="module")
def saved(glue_folder, tmp_path_factory):
    """Every configuration by `save_to_disk`, without the diagnostic set."""
    folder = tmp_path_factory.mktemp("saved")
    for task in TASKS.values():
        as_hub(glue_folder, task).save_to_disk(folder / task.hub_config)
    return folder


@pytest.fixture(scope="module")
def repository(glue_folder, tmp_path_factory):
    """A copy of the hub's repository: Parquet files, and the card that says which are which."""
    folder = tmp_path_factory.mktemp("repository")
    mnli = TASKS["MNLI"]
    rows = tsv.read_test(glue_folder, mnli, DIAGNOSTIC, DIAGNOSTIC.file)
    contents = {task.hub_config: as_hub(glue_folder, task) for task in TASKS.values()}
    contents["ax"] = DatasetDict({"test": as_dataset(mnli, rows)})
    configurations = []
    for name, splits in contents.items():
        (folder / name).mkdir()
        for split, rows in splits.items():
            rows.to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{name}/{split}-*"} for split in splits]
        configurations.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configurations})}---\n")
    return folder


@pytest.mark.parametrize("form", ["saved", "repository"])
@pytest.mark.parametrize("name", TASKS)
def test_both_forms_read_like_the_official_files(glue_folder, request, form, name):
    task = TASKS[name]
    sources = [Source(str(f)) for f in (glue_folder, request.getfixturevalue(form))]
    official, found = (source.read(task, GlueRecipe()) for source in sources)
    for one, other in zip(
        (found.train, *found.dev.values()), (official.train, *official.dev.values()), strict=True
    ):
        assert (one.texts, one.ids) == (other.texts, other.ids)
        # The hub's scores are fp32.
        assert one.labels == (pytest.approx(other.labels) if task.is_regression else other.labels)
    tests, others = (source.read_tests(task) for source in reversed(sources))
    if form == "saved":
        others.pop(DIAGNOSTIC.name, None)
    assert tests == others


def test_a_copy_without_its_card_or_with_a_file_missing(repository, tmp_path):
    task = TASKS["CoLA"]
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola" / "train-00000-of-00001.parquet").write_bytes(b"no Parquet")
    with pytest.raises(
        DataError, match=r"\(cola\) can't be had: .*; the folder has to be a whole copy"
    ):
        Source(str(tmp_path)).read(task, GlueRecipe())
    (tmp_path / "README.md").write_text((repository / "README.md").read_text())
    with pytest.raises(
        DataError, match=r"\(cola\) can't be had: .*; the folder has to be a whole copy"
    ):
        Source(str(tmp_path)).read(task, GlueRecipe())


def test_what_is_wrong_is_named(tmp_path):
    sst = TASKS["SST-2"]
    rows = {"sentence": ["a", "b"], "label": [1, 2], "idx": [0, 1]}
    DatasetDict({"train": Dataset.from_dict(rows)}).save_to_disk(tmp_path / "sst2")
    opened = hub.open_saved(tmp_path)
    with pytest.raises(DataError, match=r"sst2, train, row 1: label 2; it has to be 0 to 1"):
        hub.read_split(opened, sst, sst.train)
    rows["label"] = [-1, -1]
    DatasetDict({"train": Dataset.from_dict(rows)}).save_to_disk(tmp_path / "qqp")
    with pytest.raises(DataError, match=r"qqp, train: no column question1, question2"):
        hub.read_split(opened, TASKS["QQP"], TASKS["QQP"].train)
    with pytest.raises(DataError, match=r"sst2: no split validation; it has train"):
        hub.read_split(opened, sst, sst.dev[0])
    with pytest.raises(DataError, match=r"no saved dataset"):
        hub.read_split(opened, TASKS["CoLA"], TASKS["CoLA"].train)
    DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "rte")
    with pytest.raises(DataError, match=r"rte, train: no column sentence1, sentence2, label"):
        hub.read_split(opened, TASKS["RTE"], TASKS["RTE"].train)
