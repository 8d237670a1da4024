"""Documents that are tokenized already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mslt_ds import cli
from mslt_ds.data import tokenizer
from mslt_ds.data.prepare.documents import TokenRun
from mslt_ds.data.prepare.token_ids import SentenceCutter
from mslt_ds.data.store import TokenStore
from tests.unit.data.test_tokenizer import folder_of_kind


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def rows_of(store: TokenStore, *, nested: bool, framed: bool = False) -> list[list]:
    corpus, special = store.corpus, store.corpus.special
    rows = []
    for low, high in zip(corpus.documents[:-1], corpus.documents[1:], strict=True):
        sentences = [
            corpus.tokens[slice(*corpus.sentences[s : s + 2])].tolist() for s in range(low, high)
        ]
        if framed:
            text = [token for sentence in sentences for token in [*sentence, special.sep]]
            rows.append([special.cls, *text, special.pad, special.pad])
        else:
            rows.append(sentences if nested else [t for sentence in sentences for t in sentence])
    return rows


def write(path: Path, rows: Sequence[object]) -> Path:
    pq.write_table(pa.table({"input_ids": rows}), path, row_group_size=40)
    return path


def prepare(source: Path, store_path: Path, output: Path) -> int:
    given = ["prepare", "--input", f"{source},ids=input_ids", "--output", output, "--workers", 1]
    return cli.main([*map(str, given), "--tokenizer", str(store_path)])


@pytest.mark.parametrize("form", ["nested", "framed", "saved"])
def test_a_store_of_its_own_ids(tmp_path, store, store_path, form, capsys):
    rows = rows_of(store, nested=True, framed=form == "framed")
    rows.insert(3, [])
    rows.append(rows[0])
    if form == "saved":
        datasets.Dataset.from_dict({"input_ids": rows}).save_to_disk(
            str(source := tmp_path / "set")
        )
    else:
        source = write(tmp_path / "ids.parquet", rows)
    assert prepare(source, store_path, tmp_path / "store") == 0
    assert "% unknown" in capsys.readouterr().out
    found = TokenStore.open(tmp_path / "store")
    found.verify()
    assert np.array_equal(found.corpus.tokens, store.corpus.tokens)
    if form == "framed":  # divided behind each mark, too
        assert set(store.corpus.sentences) <= set(found.corpus.sentences)
    else:
        assert np.array_equal(found.corpus.sentences, store.corpus.sentences)
        assert np.array_equal(found.corpus.documents, store.corpus.documents)
    assert found.same_vocabulary(store) and found.corpus.special == store.corpus.special
    read = found.manifest["sources"][0]
    assert read["read"]["documents"] == store.num_documents + 1  # a duplicate
    assert read["stored"]["duplicate_documents"] == read["read"]["empty_documents"] == 1
    assert read["tokenized"]["tokens"] > store.num_tokens and read["tokenized"]["words"] == 0


def test_equal_ids_give_an_equal_store(tmp_path, store, store_path):
    for name, groups in (("a", 40), ("b", 7)):
        rows = pa.table({"input_ids": rows_of(store, nested=False)})
        pq.write_table(rows, tmp_path / f"{name}.parquet", row_group_size=groups)
        assert prepare(tmp_path / f"{name}.parquet", store_path, tmp_path / name) == 0
    found = TokenStore.open(tmp_path / "a")
    assert found.digest == TokenStore.open(tmp_path / "b").digest
    assert np.array_equal(found.corpus.tokens, store.corpus.tokens)
    assert found.num_sentences > store.num_documents


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [[1, 5], [7, 99_999]],
            "row 2 holds the token id 99999, and the tokenizer has ids up to 1199",
        ),
        ([[7, -1]], "row 1 holds the token id -1"),
        ([[5, 4, 6]], "row 1 holds the mask's id 4: masks are drawn in training"),
        ([[5, None]], "row 1 holds a null among its token ids"),
        (["text"], "column 'input_ids' holds string instead of lists of token ids"),
        ([1], "column 'input_ids' holds int64 instead of lists"),
        (
            [[[[1]]]],
            "column 'input_ids' holds list<element: list<element: list<element: int64>>> instead",
        ),
    ],
)
def test_ids_that_cant_be_used_are_named(tmp_path, store_path, rows, message, capsys):
    source = write(tmp_path / "ids.parquet", [*rows, *rows])
    assert prepare(source, store_path, tmp_path / "store") == 2
    assert f"error: --input: {source}: {message}" in capsys.readouterr().err


def test_options_of_ids(tmp_path, store, store_path, capsys):
    source = write(tmp_path / "ids.parquet", rows_of(store, nested=True))
    (tmp_path / "a.txt").write_text("A.\n\nB.\n")
    given = ["prepare", "--output", str(tmp_path / "store"), "--input"]
    for arguments, message in (
        ([f"{source},ids=input_ids"], "ids.parquet: token ids without --tokenizer"),
        ([f"{source},ids=input_ids,field=text"], "field and ids; leave out the one"),
        ([f"{tmp_path}/a.txt,ids=input_ids"], "only Parquet files and data sets hold token ids"),
    ):
        assert cli.main([*given, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["roberta", "llama", "albert"])
def test_sentences_of_ids(tmp_path: Path, kind: str):
    loaded = tokenizer.load(folder_of_kind(kind, tmp_path))
    text = "the cat sat. the mat is flat?! so the hat"
    ids = np.array(loaded.backend.encode(text, add_special_tokens=True).ids)
    found = SentenceCutter(loaded).sentences(TokenRun(ids, False, "row 1"))
    tokens = [token for token, _ in loaded.tokens_by_id()]
    words = ["".join(tokens[number] for number in part) for part in found]
    words = [one.replace("\u2581", " ").replace("\u0120", " ").strip() for one in words]
    words = [one.replace("<0x3F><0x21>", "?!") for one in words]  # bytes of Llama's kind
    if kind == "albert":  # its vocabulary has neither ? nor !, which are one unknown token
        text = text.replace("?!", "")
        assert words[0] == "the cat sat." and len(words) == 2
    else:
        assert words == ["the cat sat.", "the mat is flat?!", "so the hat"]
