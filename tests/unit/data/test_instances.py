"""The compiled instances against a plain reference, draw by draw, and what holds of all of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mslt_ds.data.instances import (
    InstanceOptions,
    epoch_key,
    first_sentence,
    num_predictions,
)
from mslt_ds.data.store import Corpus
from mslt_ds.errors import RecipeError
from tests.unit.data.comparison import (
    NO_WORDS,
    build_all,
    build_some,
    by_the_same_draws,
    rows,
    unmasked,
)
from tests.unit.data.conftest import SPECIAL, make_corpus
from tests.unit.data.reference import Frame

VOCAB_SIZE = 100
CONTINUES = np.arange(VOCAB_SIZE) % 3 == 2
FORMATS = ("nsp", "sop", "full_sentences", "doc_sentences")
MASKINGS = ("token", "whole_word", "ngram", "span")

documents_of_numbers = st.lists(
    st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=12), min_size=1, max_size=8),
    min_size=2,
    max_size=5,
)
all_options = st.builds(
    InstanceOptions,
    seq_length=st.integers(5, 40),
    max_predictions=st.integers(1, 8),
    masked_lm_prob=st.sampled_from([0.05, 0.15, 0.5, 1.0]),
    short_seq_prob=st.sampled_from([0.0, 0.1, 1.0]),
    input_format=st.sampled_from(FORMATS),
    masking=st.sampled_from(MASKINGS),
)


@given(documents_of_numbers, all_options, st.lists(st.integers(0, 2), min_size=5, max_size=5))
@settings(max_examples=400)
def test_equal_to_the_reference_draw_by_draw(documents, options, groups):
    groups = [9, *groups[1 : len(documents)]]  # two at least
    corpus = make_corpus(documents, groups=groups)
    entries, arrays = build_all(corpus, options, continues=CONTINUES)
    continues = set(np.flatnonzero(CONTINUES).tolist())
    frame = Frame(options, SPECIAL, corpus.vocab_size, continues, groups)
    expected = by_the_same_draws(documents, frame)
    found = rows(arrays, options)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("tokens", "segment_ids", "label", "masked_positions", "masked_labels"):
            assert getattr(mine, name) == getattr(theirs, name), name
    starts = [int(corpus.documents[i.document]) + i.start for i in expected]
    assert first_sentence(entries).tolist() == starts
    assert num_predictions(entries).tolist() == [len(i.masked_positions) for i in expected]


def numbered_corpus(generator: np.random.Generator, num_documents: int = 40) -> Corpus:
    """All tokens are different, so that an instance tells where it came from."""
    token = 5
    documents = []
    for _ in range(num_documents):
        document = []
        for length in generator.integers(1, 30, generator.integers(1, 20)):
            document.append(list(range(token, token + length)))
            token += length
        documents.append(document)
    return make_corpus(documents, vocab_size=token)


def test_what_holds_of_every_instance():
    corpus = numbered_corpus(np.random.default_rng(0))
    options = InstanceOptions(seq_length=64, max_predictions=10)
    sentence_of = np.repeat(np.arange(len(corpus.sentences) - 1), np.diff(corpus.sentences))
    document_of = np.repeat(np.arange(len(corpus.documents) - 1), np.diff(corpus.documents))
    for epoch in range(5):
        entries, arrays = build_all(corpus, options, epoch=epoch)
        starts = first_sentence(entries)
        for start, instance in zip(starts, rows(arrays, options), strict=True):
            tokens = unmasked(instance)
            assert len(tokens) <= options.seq_length
            assert tokens[0] == SPECIAL.cls and tokens[-1] == SPECIAL.sep
            a_end = tokens.index(SPECIAL.sep)
            a, b = tokens[1:a_end], tokens[a_end + 1 : -1]
            assert a and b and SPECIAL.sep not in b
            assert instance.segment_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)
            # Segments are runs of the text.
            assert all(y == x + 1 for x, y in pairwise(a))
            assert all(y == x + 1 for x, y in pairwise(b))
            in_a, in_b = sentence_of[a[0] - 5], sentence_of[b[0] - 5]
            assert in_a >= start and document_of[in_a] == document_of[start]
            if instance.label:
                assert document_of[in_b] != document_of[start]
            else:
                assert document_of[in_b] == document_of[start] and b[0] > a[-1]
            frame = {0, a_end, len(tokens) - 1}
            positions = instance.masked_positions
            assert frame.isdisjoint(positions)
            assert positions == sorted(set(positions))
            assert len(positions) == min(10, max(1, round(len(tokens) * 0.15)))


def test_every_sentence_is_used_once_as_a_chunks_own():
    """Chunks tile the documents: sentences that a random next left unused begin the next one."""
    corpus = numbered_corpus(np.random.default_rng(1))
    options = InstanceOptions(seq_length=400, max_predictions=60)  # long: nothing is cut off
    _, arrays = build_all(corpus, options)
    seen: list[int] = []
    for instance in rows(arrays, options):
        tokens = unmasked(instance)
        a_end = tokens.index(SPECIAL.sep)
        seen += tokens[1:a_end]
        if not instance.label:
            seen += tokens[a_end + 1 : -1]
    assert seen == corpus.tokens.tolist()


def test_a_document_depends_on_the_corpus_seed_epoch_and_document_alone():
    corpus = numbered_corpus(np.random.default_rng(2))
    options = InstanceOptions(seq_length=64, max_predictions=10)
    key = epoch_key(corpus.digest, 1, 0)
    whole, _ = options.index_documents(corpus, NO_WORDS, key, 0, 40)
    parts = [options.index_documents(corpus, NO_WORDS, key, i, i + 1)[0] for i in range(40)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(
        build_some(corpus, options, key, whole).input_ids[7:9],
        build_some(corpus, options, key, whole[7:9]).input_ids,
    )
    keys = {epoch_key("a", 1, 0), epoch_key("b", 1, 0), epoch_key("a", 2, 0), epoch_key("a", 1, 1)}
    assert len({build_some(corpus, options, key, whole).input_ids.tobytes() for key in keys}) == 4


def test_a_document_of_many_sentences_is_not_replayed():
    """Building the last instance of a long document costs no more than building its first."""
    documents = [[[5, 6, 7]] * 300_000, [[8, 9]]]
    corpus = make_corpus(documents)
    options = InstanceOptions(seq_length=32, max_predictions=5)
    key = epoch_key(corpus.digest, 1, 0)
    entries, _ = options.index_documents(corpus, NO_WORDS, key, 0, 1)
    assert len(entries) > 20_000
    # Quadratic work would be 10^9 sentences here, and hit the test's time limit.
    assert len(build_some(corpus, options, key, entries).input_ids) == len(entries)


def test_too_short_a_sequence_is_refused():
    with pytest.raises(RecipeError, match="data.seq_length: 4 is too short"):
        InstanceOptions(seq_length=4, max_predictions=1)


def test_rounding_of_the_masked_share_is_the_originals():
    """Python's: 4.5 of 30 is 4, 7.5 of 50 is 8."""
    counts = InstanceOptions(128, 20).masked_counts()
    assert [int(counts[n]) for n in (5, 10, 30, 50, 128)] == [1, 2, 4, 8, 19]
    assert InstanceOptions(512, 80).masked_counts()[512] == 77
    assert InstanceOptions(128, 10).masked_counts()[128] == 10
