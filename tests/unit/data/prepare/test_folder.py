"""Folders of Parquet files: every file is read, or the folder is refused by the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mslt_ds.data.prepare.documents import TextCounts
from mslt_ds.data.prepare.rows import HuggingFaceDataset
from mslt_ds.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def make(folder: Path, *names: str) -> Path:
    """A folder of these files. A Parquet file holds its name as its only text."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": [name]}), folder / name)
        else:
            (folder / name).write_text("text")
    return folder


def read(folder: Path, **options: Any) -> list[Any]:
    source = HuggingFaceDataset(str(folder), **options)
    source.check()
    return [document[0] for document in source.documents(TextCounts())]


@pytest.mark.parametrize(
    "names",
    [
        ["bridges.parquet", "night-train.parquet", "towers.parquet"],
        [
            "contest.parquet",
            "evaluation_of_trains.parquet",
            "my_test_set.parquet",
            "valid-1.parquet",
        ],
        ["[a].parquet", "a*.parquet", "a.parquet", "what?.parquet"],
        ["deep/deeper/b.parquet", "trains/a.parquet", "x.parquet"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["data/train/a.parquet", "data/train/b.parquet"],
    ],
)
def test_every_file_is_read(tmp_path: Path, names: list[str]):
    assert read(make(tmp_path / "set", *names)) == names


def test_files_behind_a_link_are_read(tmp_path: Path):
    make(tmp_path / "elsewhere", "b.parquet")
    folder = make(tmp_path / "set", "a.parquet")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert read(folder) == ["a.parquet", "b.parquet"]


def test_splits_are_taken_where_each_file_is_named_for_one(tmp_path: Path):
    names = ["dev/a.parquet", "test-00000-of-00001.parquet", "train.parquet"]
    folder = make(tmp_path / "set", *names)
    assert read(folder) == ["train.parquet"]
    assert read(folder, split="validation") == ["dev/a.parquet"]
    assert read(folder, split="test") == ["test-00000-of-00001.parquet"]


def test_what_describes_a_data_set_is_no_part_of_it(tmp_path: Path):
    about = ["README.md", ".gitattributes", "_SUCCESS", ".cache/a.lock", "dataset_infos.json"]
    assert read(make(tmp_path / "set", "a.parquet", *about)) == ["a.parquet"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.parquet", "b.jsonl"], "it holds b.jsonl, and Parquet files such as a.parquet"),
        (["a.parquet", "d/b.txt", "d/c.PARQUET"], "it holds d/b.txt and 1 others, and Parquet"),
        (
            ["a.parquet", "train.parquet"],
            "train.parquet is named for a split and .*a.parquet isn't",
        ),
        (
            ["test/a.parquet", "b.parquet"],
            "test/a.parquet is named for a split and .*b.parquet isn't",
        ),
        (["a.jsonl"], "a folder, and no data set in it"),
    ],
)
def test_folders_that_would_be_read_in_part_are_refused(tmp_path: Path, names, message: str):
    with pytest.raises(DataError, match=f"--input: .*set: .*{message}.* glob in quotes"):
        read(make(tmp_path / "set", *names))


def test_a_saved_data_set_with_other_files_is_refused(tmp_path: Path):
    folder = tmp_path / "set"
    datasets.Dataset(pa.table({"text": ["One."]})).save_to_disk(str(folder))
    assert read(make(folder, "README.md")) == ["One."]
    with pytest.raises(DataError, match="it holds more.parquet, which save_to_disk didn't write"):
        read(make(folder, "more.parquet"))


def test_a_file_without_the_column_is_named_and_other_columns_may_differ(tmp_path: Path):
    folder = make(tmp_path / "set", "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "more": [1]}), folder / "b.parquet")
    assert read(folder) == ["a.parquet", "b"]
    pq.write_table(pa.table({"body": ["c"]}), folder / "c.parquet")
    with pytest.raises(DataError, match="c.parquet: no column 'text'; it has body"):
        read(folder)
