"""The compiled instances against a plain reference: draw by draw, in statistics, in invariants."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mslt_ds.data.instances import (
    InstanceOptions,
    build,
    epoch_key,
    first_sentence,
    index_documents,
    num_masked,
)
from mslt_ds.data.store import Corpus, TokenStore
from mslt_ds.errors import RecipeError
from tests.unit.data.conftest import SPECIAL, make_corpus
from tests.unit.data.reference import (
    Instance,
    PythonDraws,
    Splitmix,
    derive,
    instances_of_document,
)

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
)


def build_all(corpus: Corpus, options: InstanceOptions, seed: int = 1, epoch: int = 0):
    key = epoch_key(corpus.digest, seed, epoch)
    entries = index_documents(corpus, options, key, 0, len(corpus.documents) - 1)
    return entries, build(corpus, options, key, entries)


def reference_instances(documents, options: InstanceOptions, vocab_size: int) -> list[Instance]:
    """By the same draws as the compiled code's."""
    key = int(epoch_key("test", 1, 0))
    instances = []
    for document in range(len(documents)):
        document_key = derive(key, document)
        instances += instances_of_document(
            documents, document, options, SPECIAL, vocab_size,
            Splitmix(derive(document_key, -1)),
            lambda start, document_key=document_key: Splitmix(derive(document_key, start)),
        )  # fmt: skip
    return instances


def rows(arrays, options: InstanceOptions) -> list[Instance]:
    """Compiled instances in the reference's form, after a look at their padding."""
    instances = []
    for row in range(len(arrays.input_ids)):
        length = int(arrays.attention_mask[row].sum())
        count = int(arrays.masked_weights[row].sum())
        assert arrays.attention_mask[row, :length].all()
        assert (arrays.input_ids[row, length:] == SPECIAL.pad).all()
        assert not arrays.token_type_ids[row, length:].any()
        assert not arrays.masked_weights[row, count:].any()
        assert not arrays.masked_positions[row, count:].any()
        assert not arrays.masked_labels[row, count:].any()
        instances.append(
            Instance(
                -1, -1,
                arrays.input_ids[row, :length].tolist(),
                arrays.token_type_ids[row, :length].tolist(),
                bool(arrays.next_sentence_labels[row]),
                arrays.masked_positions[row, :count].tolist(),
                arrays.masked_labels[row, :count].tolist(),
            )
        )  # fmt: skip
    return instances


@given(documents_of_numbers, all_options)
@settings(max_examples=150, deadline=None)
def test_equal_to_the_reference_draw_by_draw(documents, options):
    corpus = make_corpus(documents)
    entries, arrays = build_all(corpus, options)
    expected = reference_instances(documents, options, corpus.vocab_size)
    found = rows(arrays, options)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for name in (
            "tokens", "segment_ids", "is_random_next", "masked_positions", "masked_labels",
        ):  # fmt: skip
            assert getattr(mine, name) == getattr(theirs, name), name
    starts = [int(corpus.documents[i.document]) + i.start for i in expected]
    assert first_sentence(entries).tolist() == starts
    assert num_masked(entries).tolist() == [len(i.masked_positions) for i in expected]


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
            tokens = list(instance.tokens)
            for position, label in zip(
                instance.masked_positions, instance.masked_labels, strict=True
            ):
                tokens[position] = label
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
            if instance.is_random_next:
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
        tokens = list(instance.tokens)
        for position, label in zip(instance.masked_positions, instance.masked_labels, strict=True):
            tokens[position] = label
        a_end = tokens.index(SPECIAL.sep)
        seen += tokens[1:a_end]
        if not instance.is_random_next:
            seen += tokens[a_end + 1 : -1]
    assert seen == corpus.tokens.tolist()


def test_a_document_depends_on_the_corpus_seed_epoch_and_document_alone():
    corpus = numbered_corpus(np.random.default_rng(2))
    options = InstanceOptions(seq_length=64, max_predictions=10)
    key = epoch_key(corpus.digest, 1, 0)
    whole = index_documents(corpus, options, key, 0, 40)
    parts = [index_documents(corpus, options, key, i, i + 1) for i in range(40)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(
        build(corpus, options, key, whole).input_ids[7:9],
        build(corpus, options, key, whole[7:9]).input_ids,
    )
    keys = {epoch_key("a", 1, 0), epoch_key("b", 1, 0), epoch_key("a", 2, 0), epoch_key("a", 1, 1)}
    assert len({build(corpus, options, key, whole).input_ids.tobytes() for key in keys}) == 4


def test_a_document_of_many_sentences_is_not_replayed():
    """Building the last instance of a long document costs no more than building its first."""
    documents = [[[5, 6, 7]] * 300_000, [[8, 9]]]
    corpus = make_corpus(documents)
    options = InstanceOptions(seq_length=32, max_predictions=5)
    key = epoch_key(corpus.digest, 1, 0)
    entries = index_documents(corpus, options, key, 0, 1)
    assert len(entries) > 20_000
    # Quadratic work would be 10^9 sentences here, and hit the test's time limit.
    assert len(build(corpus, options, key, entries).input_ids) == len(entries)


def test_too_short_a_sequence_is_refused():
    with pytest.raises(RecipeError, match="data.seq_length: 4 is too short"):
        InstanceOptions(seq_length=4, max_predictions=1)


def test_rounding_of_the_masked_share_is_the_originals():
    """Python's: 4.5 of 30 is 4, 7.5 of 50 is 8."""
    counts = InstanceOptions(128, 20).masked_counts()
    assert [int(counts[n]) for n in (5, 10, 30, 50, 128)] == [1, 2, 4, 8, 19]
    assert InstanceOptions(512, 80).masked_counts()[512] == 77
    assert InstanceOptions(128, 10).masked_counts()[128] == 10


# ---- statistics on English, against the reference with random numbers of its own -----------------


@pytest.fixture(scope="module")
def statistics(store: TokenStore) -> dict[str, tuple[float, float]]:
    """Each figure by the compiled code and by the reference."""
    options = InstanceOptions(seq_length=64, max_predictions=10)
    corpus = store.corpus
    documents = [
        [
            corpus.tokens[corpus.sentences[s] : corpus.sentences[s + 1]].tolist()
            for s in range(corpus.documents[d], corpus.documents[d + 1])
        ]
        for d in range(store.num_documents)
    ]
    mine: list[Instance] = []
    theirs: list[Instance] = []
    for epoch in range(12):
        mine += rows(build_all(corpus, options, epoch=epoch)[1], options)
        for document in range(len(documents)):
            theirs += instances_of_document(
                documents, document, options, corpus.special, corpus.vocab_size,
                PythonDraws((epoch, document)),
                lambda start, epoch=epoch, document=document: PythonDraws(
                    (epoch, document, start)
                ),
            )  # fmt: skip
    found, expected = (_figures(instances, options) for instances in (mine, theirs))
    return {name: (found[name], expected[name]) for name in expected}


def _figures(instances: list[Instance], options: InstanceOptions) -> dict[str, float]:
    lengths = np.array([len(i.tokens) for i in instances])
    positions = np.concatenate([i.masked_positions for i in instances])
    in_tokens = np.concatenate([np.array(i.tokens)[i.masked_positions] for i in instances])
    labels = np.concatenate([i.masked_labels for i in instances])
    a_lengths = np.array([i.segment_ids.index(1) - 2 for i in instances])
    whole = lengths == options.seq_length
    is_mask = in_tokens == SPECIAL.mask
    quartiles = np.percentile(lengths, [10, 25, 50])
    return {
        "instances": len(instances),
        "random_next": float(np.mean([i.is_random_next for i in instances])),
        "short": float((lengths < 0.8 * options.seq_length).mean()),
        "mean_length": float(lengths.mean()),
        **{f"quartile_{i}": float(value) for i, value in enumerate(quartiles)},
        "mean_length_a": float(a_lengths.mean()),
        "a_share_of_whole": float((a_lengths[whole] / lengths[whole]).mean()),
        "masked_share": float(len(positions) / lengths.sum()),
        "mean_masked_position": float(positions.mean()),
        "mask": float(is_mask.mean()),
        "kept": float((in_tokens == labels).mean()),
    }


# Five standard errors at the sample's size, or what rounding to whole tokens can make of it.
TOLERANCES = {
    "instances": 1500,  # of 54,000: 170 of 1,704 documents are short, give or take 12
    "random_next": 0.02,
    "short": 0.02,
    "mean_length": 0.6,
    "quartile_0": 3,
    "quartile_1": 3,
    "quartile_2": 1,
    "mean_length_a": 0.6,
    "a_share_of_whole": 0.015,
    "masked_share": 0.001,
    "mean_masked_position": 0.4,
    "mask": 0.007,
    "kept": 0.006,
}


@pytest.mark.parametrize("name", TOLERANCES)
def test_statistics_are_the_references(statistics, name):
    found, expected = statistics[name]
    assert abs(found - expected) <= TOLERANCES[name], (found, expected)


def test_statistics_are_the_papers(statistics):
    """80/10/10, 15 % (10 of 64), and more random than real next sentences, because chunks of one
    sentence always get a random one."""
    assert abs(statistics["mask"][0] - 0.8) < 0.01
    assert abs(statistics["kept"][0] - 0.1) < 0.01
    assert abs(statistics["masked_share"][0] - 10 / 64) < 0.001
    assert 0.5 < statistics["random_next"][0] < 0.7


def test_a_short_target_is_drawn_for_one_document_in_ten_and_holds_for_all_of_it():
    corpus = make_corpus([[[7]] * 400 for _ in range(2000)])  # sentences of one token
    options = InstanceOptions(seq_length=43, max_predictions=1)
    entries, arrays = build_all(corpus, options)
    document = np.searchsorted(corpus.documents, first_sentence(entries), side="right") - 1
    # Real pairs are exactly as long as the target, but for the last of a document.
    is_last = np.append(np.diff(document) > 0, True)
    is_real = (arrays.next_sentence_labels == 0) & ~is_last
    lengths = arrays.attention_mask.sum(axis=1)[is_real] - 3
    targets = {}
    for number, length in zip(document[is_real].tolist(), lengths.tolist(), strict=True):
        targets.setdefault(number, set()).add(length)
    assert all(len(found) == 1 for found in targets.values())
    values = np.array([found.pop() for found in targets.values()])
    short = values[values < 40]
    assert abs(len(short) / len(values) - 0.1 * 38 / 39) < 0.025
    assert short.min() == 2 and abs(short.mean() - 20.5) < 3  # 2 to 39 alike


def test_shortening_takes_from_both_ends_alike():
    a, b = list(range(10, 60)), list(range(100, 150))
    corpus = make_corpus([[a, b], [a, b]] * 500, vocab_size=200)
    options = InstanceOptions(seq_length=43, max_predictions=1, masked_lm_prob=0.01)
    _, arrays = build_all(corpus, options)
    first, last = [], []
    for instance in rows(arrays, options):
        tokens = list(instance.tokens)
        tokens[instance.masked_positions[0]] = instance.masked_labels[0]
        first.append((tokens[1] - 10) % 90)
        last.append((149 - tokens[-2]) % 90)
    assert abs(np.mean(first) - np.mean(last)) < 1.0
    assert np.std(first) > 1.0
