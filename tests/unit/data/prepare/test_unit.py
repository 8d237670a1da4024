import json
from pathlib import Path

import numpy as np
import pytest

from mslt_ds.data import tokenizer
from mslt_ds.data.prepare.unit import (
    UNIT_CHARACTERS,
    Unit,
    Worker,
    cut_into_units,
    is_unit_of,
    read_hashes,
    read_unit,
    text_digest,
    write_unit,
)
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import DataError

DOCUMENTS = [
    ["The value is\x00 returned. It is a string.", "Raises an error."],
    ["\u200b"],
    ["New."],
]


@pytest.fixture(scope="module")
def unit(store: TokenStore) -> Unit:
    return Worker(store.tokenizer_dir, np.dtype("<u2"), "en").process(DOCUMENTS)


def test_sentences_of_documents(unit: Unit, store: TokenStore):
    used = tokenizer.load(store.tokenizer_dir)
    sentences = ["The value is returned.", "It is a string.", "Raises an error.", "New."]
    expected = [
        used.backend.encode(sentence, add_special_tokens=False).ids for sentence in sentences
    ]
    assert unit.document_lengths.tolist() == [3, 0, 1]  # nothing is left of the second
    assert unit.sentence_lengths.tolist() == [len(sentence) for sentence in expected]
    assert unit.tokens.tolist() == [token for sentence in expected for token in sentence]
    assert unit.tokens.dtype == np.uint16
    assert unit.counts.control_characters == 1
    assert len(np.unique(unit.document_hashes, axis=0)) == 3


def test_many_sentences_are_encoded_in_batches(store: TokenStore):
    worker = Worker(store.tokenizer_dir, np.dtype("<u2"), "en")
    many = worker.process([["Return the value. " * 5000]])
    assert many.document_lengths.tolist() == [5000]
    assert (many.sentence_lengths == many.sentence_lengths[0]).all()


def test_units_are_cut_between_documents_by_size_alone():
    documents = [["x" * (UNIT_CHARACTERS // 4)] * n for n in (1, 1, 3, 9, 1, 4, 2)]
    units = list(cut_into_units(documents))
    assert [[len(document) for document in unit] for unit in units] == [[1, 1, 3], [9], [1, 4], [2]]
    assert list(cut_into_units([])) == []


def test_a_unit_is_read_as_it_was_written(unit: Unit, tmp_path: Path):
    path = tmp_path / "one.unit"
    write_unit(path, unit, "text")
    found = read_unit(path)
    for name in ("document_hashes", "document_lengths", "sentence_lengths", "tokens"):
        assert np.array_equal(getattr(found, name), getattr(unit, name))
    assert found.counts.control_characters == 1
    assert np.array_equal(read_hashes(path), unit.document_hashes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["one.unit"]


def test_a_unit_knows_its_text(unit: Unit, tmp_path: Path):
    path = tmp_path / "one.unit"
    assert not is_unit_of(path, "text")
    write_unit(path, unit, "text")
    assert is_unit_of(path, "text") and not is_unit_of(path, "other")
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_unit_of(path, "text")
    path.write_bytes(b"")
    assert not is_unit_of(path, "text")


def test_text_digests_see_where_paragraphs_and_documents_end():
    texts = [[["a", "b"]], [["a"], ["b"]], [["ab"]], [["a"]], [["a b"]]]
    assert len({text_digest(text) for text in texts}) == len(texts)


def test_damage_is_found_and_named(unit: Unit, tmp_path: Path):
    path = tmp_path / "one.unit"
    with pytest.raises(DataError, match="one.unit: missing"):
        read_unit(path)
    write_unit(path, unit, "text")
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + b"?", b"{}\n", b"", b"\xff"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="one.unit: damaged .*delete it and run the same"):
            read_unit(path)
        with pytest.raises(DataError, match="one.unit: damaged"):
            read_hashes(path)
            read_unit(path)


def test_equal_documents_have_equal_hashes_wherever_they_lie(store: TokenStore, tmp_path: Path):
    worker = Worker(store.tokenizer_dir, np.dtype("<u4"), "en")
    first, second = worker.process([["a", "b"], ["c"]]), worker.process([["a", "b"], ["a b"]])
    assert np.array_equal(first.document_hashes[0], second.document_hashes[0])
    assert not np.array_equal(first.document_hashes[1], second.document_hashes[1])
    write_unit(tmp_path / "one.unit", first, "text")
    header = json.loads((tmp_path / "one.unit").read_bytes().split(b"\n")[0])
    assert header["arrays"][3][0] == "<u4"


def test_no_special_token_comes_from_the_text(store: TokenStore):
    text = ["A [MASK] and [CLS] a pair [SEP] of [PAD] [PAD].", "[SEP]"]
    tokens = Worker(store.tokenizer_dir, np.dtype("<u2"), "en").process([text]).tokens
    special = store.corpus.special
    assert not {special.pad, special.cls, special.sep, special.mask} & set(tokens.tolist())
    assert len(tokens) > 20
