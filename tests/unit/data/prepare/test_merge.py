import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mslt_ds.data.prepare import merge as module
from mslt_ds.data.prepare.merge import Merged, SourceUnits, copies_by_weight, merge
from mslt_ds.data.prepare.unit import TokenCounts, Unit, write_unit
from mslt_ds.data.store import DOCUMENTS, GROUPS, SENTENCES, TOKEN_COUNTS, TOKENS

Documents = list[list[list[int]]]  # sentences of token numbers
documents_of_numbers = st.lists(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=3), max_size=6
)
weights = st.sampled_from([0.25, 0.5, 1.0, 1.75, 2.0, 3.5])


def hashes_of(documents: Documents) -> np.ndarray:
    digests = [hashlib.md5(repr(document).encode()).digest() for document in documents]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2).copy()


def as_unit(documents: Documents) -> Unit:
    sentences = [sentence for document in documents for sentence in document]
    return Unit(
        hashes_of(documents),
        np.array([len(document) for document in documents], np.uint32),
        np.array([len(sentence) for sentence in sentences], np.uint32),
        np.array([token for sentence in sentences for token in sentence], "<u2"),
        TokenCounts(tokens=len(sentences), control_characters=len(documents)),
    )


def write_source(folder: Path, name: str, units: list[Documents], weight: float) -> SourceUnits:
    paths = [folder / f"{name}-{number}.unit" for number in range(len(units))]
    for path, documents in zip(paths, units, strict=True):
        write_unit(path, as_unit(documents), "text")
    return SourceUnits(paths, weight)


def read_store(folder: Path) -> tuple[Documents, np.ndarray]:
    tokens = np.fromfile(folder / TOKENS, "<u2")
    sentences = np.fromfile(folder / SENTENCES, "<i8")
    documents = np.fromfile(folder / DOCUMENTS, "<i8")
    counts = np.fromfile(folder / TOKEN_COUNTS, "<i8")
    assert np.array_equal(counts, np.bincount(tokens, minlength=12))
    found = [
        [tokens[sentences[s] : sentences[s + 1]].tolist() for s in range(*documents[d : d + 2])]
        for d in range(len(documents) - 1)
    ]
    return found, np.fromfile(folder / GROUPS, "<u8")


def plainly_merged(sources: list[tuple[list[Documents], float]], keep: bool) -> Documents:
    seen: Documents = []
    store: Documents = []
    for units, weight in sources:
        for documents in units:
            copies: list[Documents] = [[] for _ in range(10)]
            for document, count in zip(
                documents, copies_by_weight(hashes_of(documents), weight), strict=True
            ):
                if document and (keep or document not in seen):
                    for copy in range(count):
                        copies[copy].append(document)
                seen.append(document)
            store += [document for copy in copies for document in copy]
    return store


@given(
    st.lists(st.tuples(st.lists(documents_of_numbers, max_size=3), weights), max_size=3),
    st.booleans(),
)
@settings(max_examples=60)
def test_sources_become_one_corpus(tmp_path_factory, sources, keep):
    """Without empty and repeated documents, each as often as its source's weight says."""
    folder = tmp_path_factory.mktemp("merge")
    written = [
        write_source(folder, str(number), units, weight)
        for number, (units, weight) in enumerate(sources)
    ]
    merged = merge(written, folder, vocab_size=12, keep_duplicates=keep)
    counts = merged.total
    expected = plainly_merged(sources, keep)
    found, groups = read_store(folder)
    assert found == expected
    assert np.array_equal(groups, hashes_of(expected)[:, 0])
    assert merged.has_two_texts == (len(set(map(repr, expected))) > 1)
    assert counts.documents == len(expected)
    assert counts.sentences == sum(map(len, expected))
    assert counts.tokens == sum(len(sentence) for document in expected for sentence in document)
    given_documents = [d for units, _ in sources for documents in units for d in documents]
    assert sum(one.control_characters for one in merged.tokenized) == len(given_documents)
    assert counts.empty_documents == sum(not document for document in given_documents)
    with_text = [repr(document) for document in given_documents if document]
    assert counts.duplicate_documents == len(with_text) - len(set(with_text))
    # Every document that was read is accounted for.
    assert (
        counts.documents - counts.repeated_documents + counts.omitted_documents
        + (0 if keep else counts.duplicate_documents) + counts.empty_documents
    ) == len(given_documents)  # fmt: skip


@given(weights)
def test_a_weight_is_the_mean_number_of_copies(weight: float):
    hashes = np.random.default_rng(0).integers(2**64, size=(20_000, 2), dtype=np.uint64)
    copies = copies_by_weight(hashes, weight)
    assert set(copies) <= {int(weight), int(weight) + 1}
    assert copies.mean() == pytest.approx(weight, abs=0.02)
    assert np.array_equal(copies_by_weight(hashes[::-1], weight)[::-1], copies)


def test_what_a_small_weight_keeps_a_larger_one_keeps_too():
    hashes = np.random.default_rng(0).integers(2**64, size=(1000, 2), dtype=np.uint64)
    assert (copies_by_weight(hashes, 0.3) <= copies_by_weight(hashes, 0.7)).all()


def test_repeats_are_no_duplicates_and_each_source_has_its_figures(tmp_path: Path):
    first = write_source(tmp_path, "first", [[[[1]], [[2]]], [[[3]]]], 1.0)
    second = write_source(tmp_path, "second", [[[[3]], [[4], [5]]]], 3.0)
    merged = merge([first, second], tmp_path, vocab_size=12)
    found, groups = read_store(tmp_path)
    assert found == [[[1]], [[2]], [[3]], [[4], [5]], [[4], [5]], [[4], [5]]]
    assert len(set(groups[3:])) == 1 and len(set(groups)) == 4
    assert [counts.documents for counts in merged.sources] == [3, 3]
    assert [counts.duplicate_documents for counts in merged.sources] == [0, 1]
    assert [counts.repeated_documents for counts in merged.sources] == [0, 2]
    assert [counts.tokens for counts in merged.sources] == [3, 6]


def test_copies_alone_are_one_text(tmp_path: Path):
    def has_two_texts(*units: Documents) -> bool:
        source = write_source(tmp_path, "source", list(units), 2.0)
        merged: Merged = merge([source], tmp_path, vocab_size=12)
        return merged.has_two_texts

    assert not has_two_texts()
    assert not has_two_texts([[[1]]])
    assert not has_two_texts([[[1]]], [], [[[1]]])
    assert has_two_texts([[[1]]], [], [[[2]]])
    assert has_two_texts([[[1]], [[2]]])


def test_both_halves_of_a_hash_count(tmp_path: Path):
    unit = as_unit([[[1]], [[2]], [[3]], [[1]], [[2]]])
    unit.document_hashes[:] = [(1, 2), (1, 3), (4, 2), (1, 2), (1, 3)]
    write_unit(tmp_path / "0.unit", unit, "text")
    counts = merge([SourceUnits([tmp_path / "0.unit"])], tmp_path, vocab_size=4).total
    assert counts.documents == 3 and counts.duplicate_documents == 2


@given(st.lists(st.lists(st.integers(0, 40), max_size=20), max_size=5), st.integers(1, 30))
@settings(max_examples=50)
def test_duplicates_are_found_however_few_hashes_fit_at_once(tmp_path_factory, units, at_once):
    folder = tmp_path_factory.mktemp("hashes")
    source = write_source(folder, "0", [[[[n]] for n in unit] for unit in units], 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_HASHES_AT_ONCE", at_once)
        found = module.first_of_their_kind(source.units).tolist()
    flat = [number for unit in units for number in unit]
    assert found == [number not in flat[:i] for i, number in enumerate(flat)]
