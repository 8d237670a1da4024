"""The command on every kind of source: what they hold besides text, weights, copies."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from mslt_ds import cli
from mslt_ds.data.prepare.finish import FIGURES
from mslt_ds.data.store import MANIFEST, TokenStore
from tests.unit.data.prepare.test_rows import as_json
from tests.unit.data.prepare.test_wikipedia import page, write_dump

SAME = "Twice the same text."
TEXTS: list[str | None] = [f"Document {i} returns.\nIts value." for i in range(150)]
TEXTS += [SAME, SAME, "\u200b", "B\x07ell and \x9f.", "d\ufffdj\ufffd vu"]
DAMAGED = "d\ufffdj\ufffd vu".encode()


def text_kind(path: Path, texts: Sequence[str | None]) -> Path:
    content = "\n\n".join(text or "" for text in texts).encode()
    path.with_suffix(".txt").write_bytes(content.replace(DAMAGED, b"d\xe9j\xe0 vu"))
    return path.with_suffix(".txt")


def json_kind(path: Path, texts: Sequence[str | None]) -> Path:
    as_json(path, texts, "text")
    path = path.with_suffix(".jsonl")
    path.write_bytes(
        path.read_bytes().replace(json.dumps("d\ufffdj\ufffd vu")[1:-1].encode(), b"d\xe9j\xe0 vu")
    )
    return path


def parquet_kind(path: Path, texts: Sequence[str | None]) -> Path:
    table = damaged_table(texts)
    pq.write_table(table, path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def saved_kind(path: Path, texts: Sequence[str | None]) -> Path:
    import datasets

    datasets.Dataset(damaged_table(texts)).save_to_disk(str(path))
    return path


def dump_kind(path: Path, texts: Sequence[str | None]) -> Path:
    """XML allows neither damaged characters nor most control characters."""
    path = path.with_suffix(".xml.bz2")
    write_dump(
        path, *(page((text or "").replace("\x07", "").replace("\n", "\n\n")) for text in texts)
    )
    return path


def damaged_table(texts: Sequence[str | None]) -> pa.Table:
    values = [(text or "").encode().replace(DAMAGED, b"d\xe9j\xe0 vu") for text in texts]
    binary = pa.array(values, pa.binary())
    return pa.table({"text": pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())})


KINDS: dict[str, Callable[[Path, Sequence[str | None]], Path]] = {
    "text": text_kind,
    "json": json_kind,
    "parquet": parquet_kind,
    "saved": saved_kind,
    "dump": dump_kind,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def run(*arguments: object) -> int:
    return cli.main(["prepare", "--workers", "1", *map(str, arguments)])


def figures_of(store: Path) -> dict[str, Any]:
    return json.loads((store / FIGURES).read_text())


def texts_of(path: Path) -> list[str]:
    """A store's documents as text."""
    store = TokenStore.open(path)
    used = Tokenizer.from_file(str(store.tokenizer_dir / "tokenizer.json"))
    starts = store.corpus.sentences[store.corpus.documents]
    return [used.decode(store.corpus.tokens[start:end].tolist()) for start, end in pairwise(starts)]


@every_kind
def test_what_a_source_holds_besides_text_is_counted(tmp_path, store_path, kind, capsys):
    path = KINDS[kind](tmp_path / "source", TEXTS)
    output = tmp_path / "store"
    assert run("--input", path, "--output", output, "--tokenizer", store_path) == 0
    found = figures_of(output)
    expected = {
        "documents": 153, "duplicate_documents": 1, "empty_documents": 1,
        "invalid_utf8_paragraphs": 0 if kind == "dump" else 1,
        "control_characters": 1 if kind == "dump" else 2,
        "repeated_documents": 0, "omitted_documents": 0, "skipped_pages": 0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    (source,) = found["sources"]
    assert source["read"]["documents"] == 155 and source["stored"]["documents"] == 153
    assert source == json.loads((output / MANIFEST).read_text())["sources"][0]
    printed = capsys.readouterr().out
    assert "duplicate documents: 1" in printed and "empty documents: 1" in printed


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (kind, texts)
        for kind in KINDS
        for texts in ([], ["Only one."], ["Same.", "Same."], ["", " ", "One."])
        if texts or kind != "saved"  # datasets writes no empty data set
    ],
)
def test_fewer_than_two_documents_are_refused(tmp_path, store_path, kind, texts, capsys):
    path = KINDS[kind](tmp_path / "source", texts)
    weighted = f"{path},weight=3"
    capsys.readouterr()
    assert run("--input", weighted, "--output", tmp_path / "s", "--tokenizer", store_path) == 2
    assert capsys.readouterr().err.startswith("error: --input: ")
    assert not (tmp_path / "s" / MANIFEST).exists()


def test_a_mix_of_all_kinds_with_weights(tmp_path, store_path, capsys):
    def texts(name: str, count: int) -> list[str | None]:
        return [f"A value of {name} {i}." for i in range(count)]

    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    inputs = [
        text_kind(first / "a", texts("text", 40)),
        f"{json_kind(first / 'b', texts('json', 40))},weight=2",
        f"{parquet_kind(first / 'c', texts('parquet', 400))},weight=2.5",
        f"{saved_kind(first / 'd', texts('saved', 400))},weight=0.25",
        dump_kind(first / "e", texts("dump", 40)),
        # Again, by another name: nothing of it is new.
        text_kind(second / "f", texts("json", 40)),
    ]
    output = tmp_path / "store"
    assert run("--input", *inputs, "--output", output, "--tokenizer", store_path) == 0
    found = Counter(texts_of(output))
    assert all(found[f"a value of text {i}."] == 1 for i in range(40))
    assert all(found[f"a value of json {i}."] == 2 for i in range(40))
    assert all(found[f"a value of dump {i}."] == 1 for i in range(40))
    parquet = [found[f"a value of parquet {i}."] for i in range(400)]
    assert set(parquet) == {2, 3} and 2.4 < sum(parquet) / 400 < 2.6
    saved = [found[f"a value of saved {i}."] for i in range(400)]
    assert set(saved) == {0, 1} and 0.17 < sum(saved) / 400 < 0.33

    figures = figures_of(output)
    stored = {source["name"]: source["stored"] for source in figures["sources"]}
    assert stored["b.jsonl"]["repeated_documents"] == 40
    assert stored["c.parquet"]["repeated_documents"] == sum(parquet) - 400
    assert stored[str(first / "d")]["omitted_documents"] == 400 - sum(saved)
    assert stored["f.txt"]["duplicate_documents"] == 40 and stored["f.txt"]["documents"] == 0
    assert figures["documents"] == sum(found.values()) == TokenStore.open(output).num_documents
    assert figures["duplicate_documents"] == 40
    manifest = TokenStore.open(output).manifest
    assert manifest["sources"] == figures["sources"]
    assert [given["weight"] for given in manifest["job"]["inputs"]] == [1, 2, 2.5, 0.25, 1, 1]
    printed = capsys.readouterr().out
    assert f"omitted documents: {400 - sum(saved)}" in printed and "repeated documents:" in printed

    # Copies are a group of their own, and nothing else is.
    groups = TokenStore.open(output).corpus.groups
    by_text: dict[str, set[int]] = {}
    for text, group in zip(texts_of(output), groups.tolist(), strict=True):
        by_text.setdefault(text, set()).add(group)
    assert all(len(of_text) == 1 for of_text in by_text.values())
    assert len(set(groups.tolist())) == len(by_text)

    # Which documents appear how often is no matter of when or by how many it's decided.
    again = tmp_path / "again"
    common = ["--input", *inputs, "--output", again, "--tokenizer", store_path]
    assert run(*common, "--shard", "2/2") == run(*common, "--shard", "1/2") == 0
    assert run("--merge", "--output", again) == 0
    assert TokenStore.open(again).manifest == manifest


def test_a_name_that_isnt_utf8_is_printed_with_escapes(tmp_path, store_path, capsys):
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("One river.\n\nTwo rivers.\n")
    assert run("--input", path, "--tokenizer", store_path, "--output", tmp_path / "store") == 0
    assert "caf\\udce9.txt" in capsys.readouterr().out


def test_duplicates_are_kept_if_asked_for(tmp_path, store_path):
    path = text_kind(tmp_path / "text", ["One.", SAME, "Two.", SAME])
    common = ["--input", path, "--tokenizer", store_path]
    assert run(*common, "--output", tmp_path / "dropped") == 0
    assert run(*common, "--output", tmp_path / "kept", "--keep-duplicates") == 0
    dropped, kept = (TokenStore.open(tmp_path / name) for name in ("dropped", "kept"))
    assert (dropped.num_documents, kept.num_documents) == (3, 4)
    assert kept.corpus.groups[1] == kept.corpus.groups[3]
    assert figures_of(tmp_path / "kept")["duplicate_documents"] == 1


def test_a_vocabulary_is_trained_on_documents_by_weight(tmp_path):
    rare = [f"zebra quagga okapi {i}." for i in range(30)]
    common = [f"the value is returned {i}." for i in range(30)]
    vocabularies = []
    for weight in ("30", "0.01"):
        text_kind(tmp_path / "rare", rare)
        text_kind(tmp_path / "common", common)
        output = tmp_path / f"store{weight}"
        given = [tmp_path / "common.txt", f"{tmp_path / 'rare.txt'},weight={weight}"]
        assert (
            run("--input", *given, "--output", output, "--vocab-size", 200, "--allow-unknown") == 0
        )
        vocabularies.append(set((output / "tokenizer" / "vocab.txt").read_text().split("\n")))
    assert {"zebra", "quagga", "okapi"} <= vocabularies[0]
    assert not {"zebra", "quagga", "okapi"} & vocabularies[1]
