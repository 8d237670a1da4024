"""JSON lines, Parquet and data sets: the same documents and the same counts from each."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mslt_ds.data.prepare import json_rows
from mslt_ds.data.prepare.documents import Source, TextCounts
from mslt_ds.data.prepare.json_rows import JsonFile
from mslt_ds.data.prepare.rows import HuggingFaceDataset, ParquetFile
from mslt_ds.errors import DataError

TEXTS: list[str | None] = ["One.\n\nTwo.", None, "", " \n", "Three — “four”.", "Bell\x07 \x00."]
DOCUMENTS = [["One.", "Two."], ["Three — “four”."], ["Bell\x07 \x00."]]


def as_json(path: Path, texts: Sequence[str | None], field: str) -> Source:
    rows = (json.dumps({"id": i, field: text}) for i, text in enumerate(texts))
    path.with_suffix(".jsonl").write_text("\n".join(rows) + "\n")
    return JsonFile(path.with_suffix(".jsonl"), field)


def table_of(texts: Sequence[str | None], field: str) -> pa.Table:
    return pa.table({"id": range(len(texts)), field: pa.array(texts, pa.string())})


def as_array(path: Path, texts: Sequence[str | None], field: str) -> Source:
    rows = [{"id": i, field: text} for i, text in enumerate(texts)]
    path.with_suffix(".json").write_text(json.dumps(rows, indent=len(texts) % 3 or None))
    return JsonFile(path.with_suffix(".json"), field)


def as_parquet(path: Path, texts: Sequence[str | None], field: str) -> Source:
    pq.write_table(table_of(texts, field), path.with_suffix(".parquet"), row_group_size=2)
    return ParquetFile(path.with_suffix(".parquet"), field)


def as_saved(path: Path, texts: Sequence[str | None], field: str) -> Source:
    datasets.Dataset(table_of(texts, field)).save_to_disk(str(path))
    return HuggingFaceDataset(str(path), field)


def as_folder(path: Path, texts: Sequence[str | None], field: str) -> Source:
    path.mkdir()
    pq.write_table(table_of(texts, field), path / "train-00000-of-00001.parquet")
    pq.write_table(table_of(["of another split"], field), path / "test-00000-of-00001.parquet")
    return HuggingFaceDataset(str(path), field)


Make = Callable[[Path, Sequence[str | None], str], Source]
every_kind = pytest.mark.parametrize("make", [as_json, as_array, as_parquet, as_saved, as_folder])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(source: Source) -> tuple[list[Any], TextCounts]:
    counts = TextCounts()
    return list(source.documents(counts)), counts


@every_kind
@pytest.mark.parametrize("field", ["text", "body"])
def test_rows_are_documents(tmp_path: Path, make: Make, field: str):
    source = make(tmp_path / "rows", TEXTS, field)
    source.check()
    found, counts = read(source)
    assert found == DOCUMENTS
    assert counts == TextCounts(
        documents=3,
        paragraphs=4,
        empty_documents=3,
        text_bytes=sum(len((text or "").encode()) for text in TEXTS),
    )
    assert read(source)[0] == DOCUMENTS  # as often as it's asked


@every_kind
def test_a_field_that_isnt_there_is_named_with_those_that_are(tmp_path: Path, make: Make):
    source = make(tmp_path / "rows", TEXTS, "body")
    wrong = type(source)(getattr(source, "path", None) or source.location)  # pyright: ignore
    with pytest.raises(DataError, match="no (key|column) 'text'; it has id, body; choose one by"):
        wrong.check()


@every_kind
def test_versions_are_told_apart(tmp_path: Path, make: Make):
    sources = [
        make(tmp_path / name, texts, "text")
        for name, texts in {"a": TEXTS, "b": TEXTS, "c": [*TEXTS[:-1], "Bell\x07 \x01."]}.items()
    ]
    a, b, c = (source.fingerprint() for source in sources)
    assert a == b != c


@every_kind
def test_rows_of_another_kind(tmp_path: Path, make: Make):
    source = make(tmp_path / "rows", TEXTS, "text")
    numbers = type(source)(getattr(source, "path", None) or source.location, "id")  # pyright: ignore
    with pytest.raises(DataError, match="'id' (is a int|holds int64) instead of text"):
        numbers.check()


# ---- JSON lines ------------------------------------------------------------------------------------


def json_file(path: Path, *lines: bytes) -> JsonFile:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return JsonFile(path)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)],
)
def test_packed_lines(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]):
    plain = as_json(tmp_path / "rows", TEXTS, "text")
    packed = tmp_path / f"rows.jsonl{suffix}"
    packed.write_bytes(pack((tmp_path / "rows.jsonl").read_bytes()))
    assert read(JsonFile(packed)) == read(plain)


def test_blank_lines_and_a_mark_at_the_beginning_are_no_rows(tmp_path: Path):
    source = json_file(
        tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"text": "One."}', b"", b" ", b'{"text": "Two."}'
    )
    source.check()
    assert read(source)[0] == [["One."], ["Two."]]


def test_what_isnt_utf8_is_counted(tmp_path: Path):
    lines = [b'{"text": "Good."}'] * 300
    lines[100] = b'{"text": "d\xe9j\xe0"}'
    lines[200] = rb'{"text": "half \ud83d of \ud83d\ude00"}'
    source = json_file(tmp_path / "rows.jsonl", *lines)
    source.check()
    found, counts = read(source)
    assert counts.documents == 300 and counts.invalid_utf8_paragraphs == 2
    assert found[100] == ["d�j�"]
    assert found[200][0].endswith("of 😀") and "�" in found[200][0]
    found[200][0].encode()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_refused(tmp_path: Path, encoding: str):
    text = '{"text": "Schöne Wörter für den Ärger"}\n' * 50
    (tmp_path / "rows.jsonl").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match="rows.jsonl: not UTF-8 text.*iconv"):
        JsonFile(tmp_path / "rows.jsonl").check()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut o', r"line 3 isn't JSON \(.*one object a line is expected"),
        (b"[1, 2]", "line 3 is a JSON list; one object a line.*under 'text'"),
        (b'{"other": ""}', "line 3 has no key 'text'; it has other; choose one by PATH,field=NAME"),
        (b"{}", "line 3 has no key 'text'; it has none"),
        (
            b'{"text": "a", "b": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
            "line 3 nests lists or objects too deeply.*leave out that key",
        ),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "line 3 nests lists or objects too deeply"),
        (b'{"n": ' + b"9" * 9999 + b"}", r"line 3 (isn't JSON|has no key)"),
        (b'{"text": ["a"]}', "line 3: 'text' is a list instead of text"),
        (b'{"text": "a", "text": "b"}', "line 3 gives the key 'text' 2 times; keep one"),
    ],
)
def test_lines_that_are_something_else_are_named(tmp_path: Path, line: bytes, message: str):
    source = json_file(tmp_path / "rows.jsonl", b'{"text": "Good."}', b"", line)
    with pytest.raises(DataError, match=f"--input: .*rows.jsonl: {message}"):
        source.check()
    with pytest.raises(DataError, match=message):
        read(source)


# ---- a JSON array ----------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 7, 1 << 20])
def test_an_array_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int):
    monkeypatch.setattr(json_rows, "PROBE_BYTES", most)
    texts = ['Ä, ] and [ and } "quoted".', "x" * 100, "End \\"]
    rows = json.dumps(
        [{"text": text, "other": [1, {"a": []}]} for text in texts], ensure_ascii=False
    )
    (tmp_path / "a.json").write_text("\ufeff \n" + rows.replace("}, {", "}\n ,\n{") + "\n", "utf-8")
    assert read(JsonFile(tmp_path / "a.json"))[0] == [[text] for text in texts]
    (tmp_path / "empty.json").write_text("[ ]")
    assert read(JsonFile(tmp_path / "empty.json"))[0] == []


def test_what_isnt_utf8_in_an_array_is_counted(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(
        b"[" + b'{"text": "Good."},' * 300 + b'{"text": "d\xe9j\xe0"}]'
    )
    found, counts = read(JsonFile(tmp_path / "a.json"))
    assert counts.invalid_utf8_paragraphs == 1 and found[-1] == ["d\ufffdj\ufffd"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": "cut o', r"element 2 of the array isn't JSON"),
        ('[{"text": "a"}', "element 2 of the array isn't JSON"),
        ("[", "element 1 of the array isn't JSON"),
        ('[{"text": "a"}, 3]', "element 2 of the array is a JSON int; objects are expected"),
        ("[" * 100_000, "element 1 of the array nests lists or objects too deeply"),
        ('[{"text": "a"}]\n[{"text": "b"}]', "text follows the end of the array, behind element 1"),
        ('[{"text": "a"}]\n\n{"text": "b"}', "text follows the end of the array"),
        (
            '[{"n": {}, "text": "a", "text": ""}]',
            "element 1 of the array gives the key 'text' 2 times",
        ),
        ('[{"other": 1}]', "element 1 of the array has no key 'text'; it has other"),
    ],
)
def test_arrays_that_are_something_else_are_named(tmp_path: Path, content: str, message: str):
    (tmp_path / "a.json").write_text(content)
    for attempt in (
        JsonFile(tmp_path / "a.json").check,
        lambda: read(JsonFile(tmp_path / "a.json")),
    ):
        with pytest.raises(DataError, match=f"--input: .*a.json: {message}"):
            attempt()


# ---- fields inside of others, and bytes ------------------------------------------------------------


def test_a_field_inside_of_another(tmp_path: Path):
    rows = [{"doc": {"body": "One.", "n": 1}, "a.b": "dot"}, {"doc": {"body": None, "n": 2}, "a.b": ""},
            {"doc": None, "a.b": ""}, {"doc": {"body": "Two.", "n": 3}, "a.b": "s"}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "folder").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "folder" / "rows.parquet")

    def sources(field: str) -> list[Source]:
        return [
            JsonFile(tmp_path / "rows.jsonl", field),
            ParquetFile(tmp_path / "rows.parquet", field),
            HuggingFaceDataset(str(tmp_path / "saved"), field),
            HuggingFaceDataset(str(tmp_path / "folder"), field),
        ]

    for source in sources("doc.body"):
        source.check()
        assert read(source)[0] == [["One."], ["Two."]]
    for source in sources("a.b"):
        source.check()
        assert read(source)[0] == [["dot"], ["s"]]
    for source in sources("doc.other"):
        with pytest.raises(
            DataError, match="no (key|column) 'other' inside of 'doc'; it has body, n"
        ):
            source.check()


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4)], ids=str
)
def test_text_in_columns_of_bytes(tmp_path: Path, kind: pa.DataType):
    column = pa.array([b"One.", None, b"Tw\xc3\xb6"], kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "rows.parquet")
    source = ParquetFile(tmp_path / "rows.parquet")
    source.check()
    assert read(source)[0] == [["One."], ["Tw\u00f6"]]


# ---- Parquet ---------------------------------------------------------------------------------------


def test_damaged_text_in_parquet_is_counted(tmp_path: Path):
    binary = pa.array([b"Good."] * 300 + [b"d\xe9j\xe0"])
    for kind in (pa.string(), pa.large_string()):
        # Arrow doesn't check what a writer declares to be text.
        layout = binary.cast(pa.large_binary()) if kind == pa.large_string() else binary
        strings = pa.Array.from_buffers(kind, len(layout), layout.buffers())
        pq.write_table(pa.table({"text": strings}), tmp_path / "rows.parquet")
        found, counts = read(ParquetFile(tmp_path / "rows.parquet"))
        assert counts.invalid_utf8_paragraphs == 1 and found[-1] == ["d�j�"]


def test_dictionaries_of_strings(tmp_path: Path):
    column = pa.array(["One.", "Two.", None, "One."]).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "rows.parquet")
    source = ParquetFile(tmp_path / "rows.parquet")
    source.check()
    assert read(source)[0] == [["One."], ["Two."], ["One."]]


@pytest.mark.parametrize("others", [[], ["train", "other"]])
def test_two_columns_of_one_name(tmp_path: Path, others: list[str]):
    (tmp_path / "set").mkdir()
    names = ["text", *others, "text"]
    table = pa.Table.from_arrays([pa.array(["One."])] * len(names), names=names)
    pq.write_table(table, tmp_path / "set" / "rows.parquet")
    for source in (
        ParquetFile(tmp_path / "set" / "rows.parquet"),
        HuggingFaceDataset(str(tmp_path / "set")),
    ):
        with pytest.raises(DataError, match="--input: .*set.*2 columns are named 'text'; rename"):
            source.check()
    if others:  # the text is elsewhere
        for source in (
            ParquetFile(tmp_path / "set" / "rows.parquet", "other"),
            HuggingFaceDataset(str(tmp_path / "set"), "other"),
        ):
            source.check()
            assert read(source)[0] == [["One."]]


def test_parquet_that_isnt_or_is_damaged(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"this is text as it is")
    with pytest.raises(DataError, match="rows.parquet: can't be read .*file is whole"):
        ParquetFile(path).check()
    source = as_parquet(path, [f"Text {i}." * 1000 for i in range(1000)], "text")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = random.Random(0).randbytes(2000)
    path.write_bytes(content)
    source.check()
    with pytest.raises(DataError, match="rows.parquet: can't be read"):
        read(source)


# ---- data sets -------------------------------------------------------------------------------------


def test_the_split_can_be_chosen(tmp_path: Path):
    parts = datasets.DatasetDict(
        {name: datasets.Dataset(table_of([f"{name}."], "text")) for name in ("train", "valid")}
    )
    parts.save_to_disk(str(tmp_path / "saved"))
    location = str(tmp_path / "saved")
    assert read(HuggingFaceDataset(location))[0] == [["train."]]
    assert read(HuggingFaceDataset(location, split="valid"))[0] == [["valid."]]
    assert (
        HuggingFaceDataset(location).fingerprint()
        != HuggingFaceDataset(location, split="valid").fingerprint()
    )
    with pytest.raises(DataError, match="no split 'test'; choose one of train, valid by"):
        HuggingFaceDataset(location, split="test").check()


def test_a_data_set_that_was_selected_from(tmp_path: Path):
    whole = datasets.Dataset(table_of(["One.", "Two.", "Three."], "text"))
    whole.select([2, 0]).save_to_disk(str(tmp_path / "saved"))
    assert read(HuggingFaceDataset(str(tmp_path / "saved")))[0] == [["Three."], ["One."]]


def test_the_hub_out_of_reach(tmp_path: Path):
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-m", "mslt_ds.cli", "prepare", "--output", str(tmp_path / "store")]
    command += ["--input", "wikimedia/wikipedia:20231101.en"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert (
        "error: --input: wikimedia/wikipedia:20231101.en: can't be loaded as a data" in run.stderr
    )
    assert "network" in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "store").exists()
