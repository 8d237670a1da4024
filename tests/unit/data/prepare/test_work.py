import json
from pathlib import Path

import pytest

from mslt_ds.data.prepare.documents import TextCounts
from mslt_ds.data.prepare.work import SourceRecord, WorkFolder
from mslt_ds.errors import DataError

RECORD = SourceRecord("text.txt", 2.0, "abc", units=2, counts=TextCounts(documents=3))
JOB = {"inputs": ["text.txt"], "options": {"a": 1}}


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    work = WorkFolder(tmp_path / "store")
    work.check_output()
    work.begin(JOB)
    return work


def test_folders_that_may_be_written(tmp_path: Path):
    WorkFolder(tmp_path / "new" / "folder").check_output()
    assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "begun" / "work").mkdir(parents=True)
    WorkFolder(tmp_path / "begun").check_output()


def test_folders_that_may_not(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="--output: .*file: a file; name a new folder"):
        WorkFolder(tmp_path / "file").check_output()
    with pytest.raises(DataError, match="--output: .*can't be made"):
        WorkFolder(tmp_path / "file" / "store").check_output()
    with pytest.raises(DataError, match="not empty, and no token store"):
        WorkFolder(tmp_path).check_output()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_same_job_goes_on_and_another_is_refused(work: WorkFolder):
    work.check_output()
    work.check_same_job(JOB)
    with pytest.raises(DataError, match="holds a store of other options; name another"):
        work.check_same_job(JOB | {"options": {"a": 2}})
    with pytest.raises(DataError, match="of other inputs and versions"):
        work.check_same_job(JOB | {"inputs": [], "versions": 1})


def test_a_finished_store_remembers_its_job(work: WorkFolder):
    (work.output / "manifest.json").write_text(json.dumps({"job": JOB}))
    work.remove()
    assert work.is_finished() and work.find_job() == JOB
    work.check_same_job(JOB)
    with pytest.raises(DataError, match="holds a store of other options"):
        work.check_same_job(JOB | {"options": {}})


def test_a_job_that_cant_be_read(work: WorkFolder):
    for text in ("{", "[" * 9999):
        (work.path / "job.json").write_text(text)
        with pytest.raises(DataError, match="job.json: can't be read"):
            work.check_same_job(JOB)


def test_what_is_missing_is_named(work: WorkFolder):
    with pytest.raises(DataError, match="0000.source.json: missing, so input 1 of 2"):
        work.sources(2)
    work.write_source(0, RECORD)
    with pytest.raises(DataError, match="0001.source.json: missing, so input 2 of 2"):
        work.sources(2)
    work.write_source(1, RECORD)
    assert work.sources(2) == [RECORD, RECORD]
    for file, number in ((0, 0), (0, 1), (1, 1)):
        work.unit(file, number).touch()
    with pytest.raises(DataError, match="0001-000000.unit: missing, as 1 of 4 units are"):
        work.units(work.sources(2))
    work.unit(1, 0).touch()
    assert list(map(len, work.units(work.sources(2)))) == [2, 2]
    assert not [path for path in work.path.iterdir() if path.name.startswith(".")]


def test_a_damaged_record_is_named(work: WorkFolder):
    work.write_source(0, RECORD)
    for content in ("{", "[]", "{}", '{"counts": {"odd": 1}}'):
        (work.path / "0000.source.json").write_text(content)
        with pytest.raises(DataError, match="0000.source.json: damaged .*delete it and run"):
            work.sources(1)
