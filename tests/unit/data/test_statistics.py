"""Instances of English in their statistics, against the reference with random numbers of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mslt_ds.data.instances import InstanceOptions, first_sentence
from mslt_ds.data.masking import Masking, choose_words, run_weights
from mslt_ds.data.store import TokenStore
from mslt_ds.data.words import continuing_tokens
from tests.unit.data.comparison import build_all, rows, unmasked
from tests.unit.data.conftest import make_corpus
from tests.unit.data.statistics import VARIANTS, compare, tolerance

SEQ_LENGTH, MAX_PREDICTIONS, EPOCHS = 64, 10, 4
SENTENCES = 8  # of a document: many alike, for what is drawn once for each of them


def options_of(input_format: str, masking: Masking) -> InstanceOptions:
    return InstanceOptions(SEQ_LENGTH, MAX_PREDICTIONS, input_format=input_format, masking=masking)


@pytest.fixture(scope="module")
def figures(store: TokenStore) -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    continues = continuing_tokens(store)
    corpus = store.corpus
    documents = np.append(np.arange(0, store.num_sentences, SENTENCES), store.num_sentences)
    groups = np.arange(len(documents) - 1, dtype=np.uint64)
    corpus = replace(corpus, documents=documents, groups=groups)
    return {
        variant: compare(corpus, continues, options_of(*variant), EPOCHS) for variant in VARIANTS
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_statistics_are_the_references(figures, variant):
    options = options_of(*variant)
    off = {
        name: (found, expected)
        for name, (found, expected) in figures[variant].items()
        if abs(found - expected) > tolerance(name, expected, options)
    }
    assert off == {}


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_statistics_are_the_papers(figures, variant):
    """80/10/10, 15 % (10 of 64), whole words, and nothing but text masked."""
    found = {name: value for name, (value, _) in figures[variant].items()}
    input_format, masking = variant
    assert abs(found["became [MASK]"] - 0.8) < 0.012
    assert abs(found["stayed"] - 0.1) < 0.01
    assert abs(found["masked share"] - 0.15) < 0.008
    assert found["masked [CLS] or [SEP]"] == 0
    assert found["segment ids as they should be"] == 1
    if masking != "token":
        assert found["words masked in part"] == 0
    if input_format == "nsp":
        # More random than real next sentences: chunks of one sentence always get a random one.
        assert 0.5 < found["label 1"] < 0.7
        assert found["B's text occurs in A's document"] < 1 - found["label 1"] + 0.03
    if input_format == "sop":
        assert abs(found["label 1"] - 0.5) < 0.02
        assert found["B's text occurs in A's document"] > 0.9  # not where the cut lies inside
    if input_format == "full_sentences":
        assert found["separators"] > 1.05
    if input_format == "doc_sentences":
        assert found["separators"] == 1


@pytest.mark.parametrize(
    ("masking", "shares", "mean"),
    [
        ("ngram", [6 / 11, 3 / 11, 2 / 11], 18 / 11),
        ("span", [0.2 * 0.8**n / (1 - 0.8**10) for n in range(10)], 3.797),
    ],
)
def test_runs_are_as_long_as_the_papers_say(masking: Masking, shares, mean):
    """Of many runs in a long text of words of one token, so that few meet or are cut short."""
    length, budget = 20_000, 1_000
    ids = np.full(length, 7)
    lengths: list[int] = []
    for seed in range(30):
        chosen, begins = np.zeros(length, np.bool_), np.zeros(length, np.bool_)
        count = choose_words(
            ids, np.arange(1, length - 1), length - 2, budget, np.zeros(10, np.bool_),
            run_weights(masking), np.empty(length, np.int64), np.empty(length, np.int64),
            chosen, begins, np.array([seed], np.uint64),
        )  # fmt: skip
        assert count == budget == chosen.sum()
        borders = np.flatnonzero(begins[chosen])
        lengths += np.diff(np.append(borders, budget)).tolist()
    found = np.bincount(lengths, minlength=len(shares) + 1)[1:] / len(lengths)
    assert len(found) == len(shares)
    assert np.abs(found - shares).max() < 0.02
    assert abs(np.mean(lengths) - mean) < 0.02 * mean


def test_one_draw_decides_for_a_span_and_one_for_each_token_of_other_runs():
    corpus = make_corpus([[[7] * 120] * 40 for _ in range(60)])
    shares = {}
    for masking in ("ngram", "span"):
        options = InstanceOptions(128, 20, input_format="doc_sentences", masking=masking)
        _, arrays = build_all(corpus, options, continues=np.zeros(100, np.bool_))
        pairs, equal = 0, 0
        for row in range(len(arrays.input_ids)):
            positions = arrays.masked_positions[row, : int(arrays.masked_weights[row].sum())]
            masked = arrays.input_ids[row, positions] == corpus.special.mask
            neighbours = np.diff(positions) == 1
            pairs += neighbours.sum()
            equal += (masked[1:] == masked[:-1])[neighbours].sum()
        shares[masking] = equal / pairs
    assert abs(shares["ngram"] - (0.8**2 + 0.2**2)) < 0.02
    assert shares["span"] > 0.93  # all but those of two runs side by side


def test_a_short_target_is_drawn_for_one_document_in_ten_and_holds_for_all_of_it():
    corpus = make_corpus([[[7]] * 400 for _ in range(2000)])  # sentences of one token
    options = InstanceOptions(seq_length=43, max_predictions=1)
    entries, arrays = build_all(corpus, options)
    document = np.searchsorted(corpus.documents, first_sentence(entries), side="right") - 1
    # Real pairs are exactly as long as the target, but for the last of a document.
    is_last = np.append(np.diff(document) > 0, True)
    is_real = (arrays.pair_labels == 0) & ~is_last
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
        tokens = unmasked(instance)
        first.append((tokens[1] - 10) % 90)
        last.append((149 - tokens[-2]) % 90)
    assert abs(np.mean(first) - np.mean(last)) < 1.0
    assert np.std(first) > 1.0
