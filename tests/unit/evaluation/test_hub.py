"""The hub's form of GLUE, saved on this machine, is read as the official files are."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict

from mslt_ds.errors import DataError
from mslt_ds.evaluation import hub, tsv
from mslt_ds.evaluation.glue import Source
from mslt_ds.evaluation.recipe import GlueRecipe
from mslt_ds.evaluation.tasks import TASKS


def as_hub(glue_folder, task) -> DatasetDict:
    """The dataset that the official files come to."""
    splits = {}
    for split in (task.train, *task.dev):
        rows = tsv.read_split(glue_folder, task, split)
        columns = dict(zip(task.hub_texts, zip(*rows.texts, strict=True), strict=True))
        splits[split.hub_split] = Dataset.from_dict(
            {name: list(texts) for name, texts in columns.items()}
            | {"label": rows.labels, "idx": list(range(len(rows)))}
        )
    for split in task.test:
        rows = tsv.read_test(glue_folder, task, split)
        columns = dict(zip(task.hub_texts, zip(*rows.texts, strict=True), strict=True))
        hidden = -1.0 if task.is_regression else -1
        splits[split.hub_split] = Dataset.from_dict(
            {name: list(texts) for name, texts in columns.items()}
            | {"label": [hidden] * len(rows), "idx": [int(i) for i in rows.ids]}
        )
    return DatasetDict(splits)


@pytest.mark.parametrize("name", TASKS)
def test_a_saved_dataset_reads_like_the_official_files(glue_folder, tmp_path, name):
    task = TASKS[name]
    as_hub(glue_folder, task).save_to_disk(tmp_path / task.hub_config)
    official, saved = (Source(str(d)).read(task, GlueRecipe()) for d in (glue_folder, tmp_path))
    assert saved == official
    for split in task.test:
        found = hub.read_test(hub.open_saved(tmp_path), task, split)
        assert found == tsv.read_test(glue_folder, task, split)


def test_what_is_wrong_is_named(tmp_path):
    sst = TASKS["SST-2"]
    rows = {"sentence": ["a", "b"], "label": [1, 2], "idx": [0, 1]}
    DatasetDict({"train": Dataset.from_dict(rows)}).save_to_disk(tmp_path / "sst2")
    opened = hub.open_saved(tmp_path)
    with pytest.raises(DataError, match=r"sst2, train, row 1: label 2; it has to be 0 to 1"):
        hub.read_split(opened, sst, sst.train)
    with pytest.raises(DataError, match=r"sst2: no split validation; it has train"):
        hub.read_split(opened, sst, sst.dev[0])
    with pytest.raises(DataError, match=r"no saved dataset"):
        hub.read_split(opened, TASKS["CoLA"], TASKS["CoLA"].train)
    DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "rte")
    with pytest.raises(DataError, match=r"rte, train: no column sentence1, sentence2, label"):
        hub.read_split(opened, TASKS["RTE"], TASKS["RTE"].train)
