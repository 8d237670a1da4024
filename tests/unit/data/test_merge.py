from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mslt_ds.data.merge import merge
from mslt_ds.data.store import DOCUMENTS, SENTENCES, TOKEN_COUNTS, TOKENS
from mslt_ds.data.unit import Unit, write_unit

Documents = list[list[list[int]]]  # sentences of token numbers
documents_of_numbers = st.lists(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=3), max_size=6
)


def as_unit(documents: Documents) -> Unit:
    sentences = [sentence for document in documents for sentence in document]
    hashes = [(hash(repr(document)) % 2**64, 7) for document in documents]
    return Unit(
        np.array(hashes, np.uint64).reshape(-1, 2),
        np.array([len(document) for document in documents], np.uint32),
        np.array([len(sentence) for sentence in sentences], np.uint32),
        np.array([token for sentence in sentences for token in sentence], "<u2"),
        control_characters=len(documents),
    )


@given(st.lists(documents_of_numbers, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_units_become_one_corpus_without_empty_and_repeated_documents(tmp_path_factory, units):
    folder = tmp_path_factory.mktemp("merge")
    paths = []
    for number, documents in enumerate(units):
        paths.append(folder / f"{number}.unit")
        write_unit(paths[-1], as_unit(documents), "text")
    counts = merge(paths, folder, vocab_size=12)

    everything = [document for documents in units for document in documents]
    expected: Documents = []
    for document in everything:
        if document and document not in expected:
            expected.append(document)
    tokens = np.fromfile(folder / TOKENS, "<u2")
    sentences = np.fromfile(folder / SENTENCES, "<i8")
    documents = np.fromfile(folder / DOCUMENTS, "<i8")
    found = [
        [tokens[sentences[s] : sentences[s + 1]].tolist() for s in range(*documents[d : d + 2])]
        for d in range(len(documents) - 1)
    ]
    assert found == expected
    assert np.array_equal(
        np.fromfile(folder / TOKEN_COUNTS, "<i8"), np.bincount(tokens, minlength=12)
    )
    assert counts.documents == len(expected)
    assert counts.sentences == len(sentences) - 1 and counts.tokens == len(tokens)
    assert counts.empty_documents == sum(not document for document in everything)
    assert counts.duplicate_documents == len(everything) - counts.empty_documents - len(expected)
    assert counts.control_characters == len(everything)


def test_both_halves_of_a_hash_count(tmp_path: Path):
    unit = as_unit([[[1]], [[2]], [[3]], [[1]], [[2]]])
    unit.document_hashes[:] = [(1, 2), (1, 3), (4, 2), (1, 2), (1, 3)]
    write_unit(tmp_path / "0.unit", unit, "text")
    counts = merge([tmp_path / "0.unit"], tmp_path, vocab_size=4)
    assert counts.documents == 3 and counts.duplicate_documents == 2
