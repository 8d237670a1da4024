from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mslt_ds.data.prepare.documents import TextCounts, TextFile
from mslt_ds.data.prepare.json_rows import JsonFile
from mslt_ds.data.prepare.rows import HuggingFaceDataset, ParquetFile
from mslt_ds.data.prepare.sources import find_inputs, weighted_documents
from mslt_ds.data.prepare.wikipedia import WikipediaDump
from mslt_ds.errors import DataError
from tests.unit.data.prepare.test_wikipedia import page, write_dump


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of each kind."""
    (tmp_path / "text.txt").write_text("Text.\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "Row.", "body": "Body."}\n')
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "deep" / "a.txt").write_text("A.\n")
    (tmp_path / "deep" / "deeper" / "b.txt").write_text("B.\n")
    write_dump(tmp_path / "dump.xml.bz2", page("Article."))
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"text": ["Set."]}), tmp_path / "set" / "train.parquet")
    pq.write_table(pa.table({"text": ["Parquet."]}), tmp_path / "rows.parquet")
    (tmp_path / "with,weight=2.txt").write_text("Odd.\n")
    (tmp_path / "with,wait=2.txt").write_text("Odder.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def texts(*given: str) -> list[Any]:
    inputs = find_inputs(given)
    return [document[0] for found in inputs for document in found.source.documents(TextCounts())]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["text.txt"], ["Text."]),
        (["rows.jsonl"], ["Row."]),
        (["rows.jsonl,field=body"], ["Body."]),
        (["rows.parquet"], ["Parquet."]),
        (["dump.xml.bz2"], ["Article."]),
        (["set"], ["Set."]),
        (["deep/*.txt"], ["A."]),
        (["deep/**/*.txt"], ["A.", "B."]),
        (["with,weight=2.txt"], ["Odd."]),
        (["with,weight=2.txt,weight=3"], ["Odd."]),
        (["with,wait=2.txt"], ["Odder."]),
        (["*,wa*=2.txt,weight=3"], ["Odder."]),
        (["rows.*"], ["Row.", "Parquet."]),
        (
            ["set", "deep/**/*.txt,weight=2", "rows.jsonl", "dump.xml.bz2", "rows.parquet"],
            ["Set.", "A.", "B.", "Row.", "Article.", "Parquet."],
        ),
    ],
)
def test_inputs_of_every_kind_in_any_mix(folder: Path, given: list[str], expected: list[str]):
    assert texts(*given) == expected


def test_options(folder: Path):
    inputs = find_inputs(["text.txt,weight=2.5", "rows.jsonl,field=body,weight=.1", "rows.parquet"])
    assert [found.weight for found in inputs] == [2.5, 0.1, 1.0]
    assert [found.source for found in inputs] == [
        TextFile(Path("text.txt")),
        JsonFile(Path("rows.jsonl"), "body"),
        ParquetFile(Path("rows.parquet")),
    ]
    assert find_inputs(["set,split=train,weight=2"])[0].source == HuggingFaceDataset("set")


def test_what_the_content_depends_on_is_described(folder: Path):
    described = [
        found.describe() for found in find_inputs(["rows.jsonl,field=body,weight=2", "set"])
    ]
    assert [{**one, "fingerprint": len(one["fingerprint"])} for one in described] == [
        {"name": "rows.jsonl", "weight": 2.0, "field": "body", "fingerprint": 64},
        {"name": "set", "weight": 1.0, "field": "text", "split": "train", "fingerprint": 64},
    ]
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".txt", TextFile),
        (".txt.zst", TextFile),
        (".xz", TextFile),
        (".jsonl.gz", JsonFile),
        (".json.zst", JsonFile),
        (".ndjson.bz2", JsonFile),
        (".xml.bz2", WikipediaDump),
        (".xml-p1p41242.bz2", WikipediaDump),
        (".parquet", ParquetFile),
    ],
)
def test_kinds_by_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, kind: type):
    monkeypatch.setattr(kind, "check", lambda self: None)
    path = tmp_path / f"part-1{suffix}"
    path.touch()
    assert find_inputs([path])[0].source == kind(path)


@pytest.mark.parametrize(
    "suffix",
    [
        "",
        ".docx",
        ".csv",
        ".csv.gz",
        ".parquet.gz",
        ".pdf.xz",
        ".tar.gz",
        ".gz.xz",
        ".TXT",
        ".zip",
    ],
)
def test_other_suffixes_are_named(tmp_path: Path, suffix: str):
    path = tmp_path / f"part-1{suffix}"
    path.write_text("Some text.\n")
    with pytest.raises(
        DataError, match=f"part-1{suffix}: suffix '{suffix}' is not known; expected text"
    ):
        find_inputs([path])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.txt", "nothing.txt: no such file"),
        ("nothing", "nothing: no such file"),
        ("owner/nothing.jsonl", "owner/nothing.jsonl: no such file"),
        ("some/deep/path", "some/deep/path: no such file"),
        ("*.pdf", r"\*.pdf: no file is named so"),
        ("deep", r"deep: a folder, and no data set in it .*'deep/\*\*/\*.txt'"),
        ("/dev/null", "/dev/null: neither a file nor a folder"),
        ("text.txt,weight=0", "text.txt,weight=0: weight '0'; it's how often"),
        ("text.txt,weight=-1", "weight '-1'"),
        ("text.txt,weight=nan", "weight 'nan'"),
        ("text.txt,weight=1e9", "weight '1e9'.*up to 1000"),
        ("text.txt,weight=much", "weight 'much'"),
        ("text.txt,field=body", "text.txt: this kind of file has no field"),
        ("rows.parquet,split=train", "rows.parquet: this kind of file has no split"),
        (
            "text.txt,wait=2",
            "text.txt,wait=2: no such file, and no option 'wait'; .* weight, field, ids, s",
        ),
        ("text.txt, weight=2", "no option ' weight'; the options are weight, field, ids, split"),
        ("deep/*.txt,wait=2,weight=2", "no option 'wait'"),
        ("owner/name,wait=2", "owner/name,wait=2: .* no option 'wait'"),
        ("text.txt,weight=2,weight=3", "text.txt,weight=2,weight=3: weight is given twice"),
        ("text.txt,weight", "text.txt,weight: no such file"),
        ("rows.jsonl,field=no", "line 1 has no key 'no'; it has text, body"),
    ],
)
def test_inputs_that_cant_be(folder: Path, given: str, message: str):
    with pytest.raises(DataError, match=f"--input: .*{message}"):
        find_inputs(["text.txt", given])


def test_no_input():
    with pytest.raises(DataError, match="--input: none given"):
        find_inputs([])


def test_documents_by_weight(folder: Path):
    (folder / "many.txt").write_text("\n\n".join(f"Text {i}." for i in range(1000)))
    counts = TextCounts()
    inputs = find_inputs(["many.txt,weight=2.5"])
    found = [document[0] for document in weighted_documents(inputs, counts)]
    assert 2400 < len(found) < 2600 and counts.documents == 1000
    assert {found.count(text) for text in set(found)} == {2, 3}
    fewer = [d[0] for d in weighted_documents(find_inputs(["many.txt,weight=0.2"]), TextCounts())]
    assert 150 < len(fewer) < 250 and len(set(fewer)) == len(fewer)
