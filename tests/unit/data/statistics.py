"""Figures of instances on real text, by the compiled code and by the plain reference with random
numbers of its own, and how far apart they may be.

    python -m tests.unit.data.statistics STORE [--seq-length N] [--documents N] [--epochs N]

prints them for a store of your own, and ends with 1 if one is further apart than its tolerance.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby
from typing import get_args

import numpy as np

from mslt_ds.data import tokenizer
from mslt_ds.data.instances import InstanceOptions
from mslt_ds.data.masking import Masking
from mslt_ds.data.store import Corpus, TokenStore
from tests.unit.data.comparison import build_all, by_other_draws, documents_of, rows, unmasked
from tests.unit.data.reference import Frame, Instance

VARIANTS: tuple[tuple[str, Masking], ...] = (
    *(("nsp", masking) for masking in get_args(Masking)),
    *((input_format, "token") for input_format in ("sop", "full_sentences", "doc_sentences")),
    ("sop", "whole_word"),
    ("full_sentences", "span"),
)
_EDGE = 3  # tokens by which a sentence's beginning or end is known

# About five standard errors at 20,000 instances, or what rounding to whole tokens can make of it;
# 0 where it's no matter of chance.
TOLERANCES = {
    "instances": 0.03,  # of their number
    "label 1": 0.02,
    "short": 0.02,  # of less than four fifths of the length
    "mean length": 0.01,  # of the sequence length
    "length, 10th percentile": 0.05,  # of the sequence length
    "length, 25th percentile": 0.05,  # of the sequence length
    "length, median": 0.02,  # of the sequence length
    "mean length of A": 0.015,  # of the sequence length
    "share of segment 1": 0.01,
    "segment ids as they should be": 0.0,
    "A cut at its beginning": 0.02,
    "A cut at its end": 0.02,
    "B cut at its beginning": 0.02,
    "B cut at its end": 0.02,
    "B's text occurs in A's document": 0.01,
    "separators": 0.05,
    "masked share": 0.001,
    "mean masked position": 0.008,  # of the sequence length
    "masked [CLS] or [SEP]": 0.0,
    "became [MASK]": 0.01,
    "stayed": 0.008,
    "words masked in part": 0.0,
    "masked words side by side": 0.02,  # of the mean length of such a run
    "runs of one word": 0.01,
}
_OF_SEQUENCE_LENGTH = ("length", "mean length", "mean masked position")
_OF_VALUE = ("instances", "masked words side by side")


def tolerance(name: str, expected: float, options: InstanceOptions) -> float:
    if name.startswith(_OF_SEQUENCE_LENGTH):
        return TOLERANCES[name] * options.seq_length
    return TOLERANCES[name] * (expected if name in _OF_VALUE else 1.0)


def compare(
    corpus: Corpus, continues: np.ndarray, options: InstanceOptions, epochs: int
) -> dict[str, tuple[float, float]]:
    """Each figure by the compiled code and by the reference, over some epochs."""
    documents = documents_of(corpus)
    words = frozenset(np.flatnonzero(continues).tolist())
    frame = Frame(options, corpus.special, corpus.vocab_size, words, corpus.groups.tolist())
    mine: list[Instance] = []
    theirs: list[Instance] = []
    for epoch in range(epochs):
        entries, arrays = build_all(corpus, options, epoch=epoch, continues=continues)
        starts = (entries & np.uint64((1 << 48) - 1)).astype(np.int64)
        owners = np.searchsorted(corpus.documents, starts, side="right") - 1
        for instance, owner in zip(rows(arrays, options, corpus.special), owners, strict=True):
            instance.document = int(owner)
            mine.append(instance)
        theirs += by_other_draws(documents, frame, epoch)
    edges = _edges(documents)
    whole = [
        np.array([t for sentence in document for t in sentence], "<u4").tobytes()
        for document in documents
    ]
    found, expected = (_figures(part, frame, edges, whole) for part in (mine, theirs))
    return {name: (found[name], expected[name]) for name in expected}


def _edges(documents: list[list[list[int]]]) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """How sentences begin and end."""
    sentences = [sentence for document in documents for sentence in document]
    return {tuple(s[:_EDGE]) for s in sentences}, {tuple(s[-_EDGE:]) for s in sentences}


def _figures(
    instances: list[Instance],
    frame: Frame,
    edges: tuple[set[tuple[int, ...]], set[tuple[int, ...]]],
    documents: list[bytes],
) -> dict[str, float]:
    options, special = frame.options, frame.special
    originals = [unmasked(instance) for instance in instances]
    lengths = np.array([len(tokens) for tokens in originals])
    positions = np.concatenate([i.masked_positions for i in instances])
    in_tokens = np.concatenate([np.array(i.tokens)[i.masked_positions] for i in instances])
    labels = np.concatenate([i.masked_labels for i in instances])
    percentiles = np.percentile(lengths, [10, 25, 50])
    figures = {
        "instances": len(instances),
        "short": float((lengths < 0.8 * options.seq_length).mean()),
        "mean length": float(lengths.mean()),
        "length, 10th percentile": float(percentiles[0]),
        "length, 25th percentile": float(percentiles[1]),
        "length, median": float(percentiles[2]),
        "separators": float(np.mean([tokens.count(special.sep) for tokens in originals])),
        "masked share": float(len(positions) / lengths.sum()),
        "mean masked position": float(positions.mean()),
        "masked [CLS] or [SEP]": float(np.isin(labels, [special.cls, special.sep]).mean()),
        "became [MASK]": float((in_tokens == special.mask).mean()),
        "stayed": float((in_tokens == labels).mean()),
        "segment ids as they should be": float(
            np.mean([i.segment_ids == _segments(t, frame) for i, t in zip(instances, originals)])  # noqa: B905
        ),
    }
    if options.is_paired:
        figures |= _pair_figures(instances, originals, frame, edges, documents)
    if options.masking != "token":
        figures |= _word_figures(instances, originals, frame)
    return figures


def _segments(tokens: list[int], frame: Frame) -> list[int]:
    if not frame.options.is_paired:
        return [0] * len(tokens)
    a = tokens.index(frame.special.sep) + 1
    return [0] * a + [1] * (len(tokens) - a)


def _pair_figures(
    instances: list[Instance],
    originals: list[list[int]],
    frame: Frame,
    edges: tuple[set[tuple[int, ...]], set[tuple[int, ...]]],
    documents: list[bytes],
) -> dict[str, float]:
    begins, ends = edges
    cut = {name: 0 for name in TOLERANCES if " cut at " in name}
    own, lengths_a = 0, []
    for instance, tokens in zip(instances, originals, strict=True):
        a_end = tokens.index(frame.special.sep)
        for segment, content in (("A", tokens[1:a_end]), ("B", tokens[a_end + 1 : -1])):
            cut[f"{segment} cut at its beginning"] += tuple(content[:_EDGE]) not in begins
            cut[f"{segment} cut at its end"] += tuple(content[-_EDGE:]) not in ends
        lengths_a.append(a_end - 1)
        text = np.array(tokens[a_end + 1 : -1], "<u4").tobytes()
        own += text in documents[instance.document]
    count = len(instances)
    return {
        "label 1": float(np.mean([instance.label for instance in instances])),
        "mean length of A": float(np.mean(lengths_a)),
        "share of segment 1": float(np.mean([np.mean(i.segment_ids) for i in instances])),
        "B's text occurs in A's document": own / count,
    } | {name: number / count for name, number in cut.items()}


def _word_figures(
    instances: list[Instance], originals: list[list[int]], frame: Frame
) -> dict[str, float]:
    """Of words, which begin with a token that doesn't go on with one before, or at a separator."""
    in_part, words, runs, single = 0, 0, 0, 0
    special = {frame.special.cls, frame.special.sep}
    for instance, tokens in zip(instances, originals, strict=True):
        masked = set(instance.masked_positions)
        states = []  # of each word: True masked, False not, None a separator
        for position, token in enumerate(tokens):
            if token in special:
                states.append(None)
            elif token in frame.continues and states[-1] is not None:
                in_part += (position in masked) is not states[-1]
            else:
                states.append(position in masked)
        for state, run in groupby(states):
            if state:
                length = len(list(run))
                words, runs, single = words + length, runs + 1, single + (length == 1)
    return {
        "words masked in part": in_part,
        "masked words side by side": words / runs,
        "runs of one word": single / runs,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.unit.data.statistics")
    parser.add_argument("store")
    parser.add_argument("--seq-length", type=int, default=128)
    parser.add_argument("--documents", type=int, default=2000, help="the first N only")
    parser.add_argument("--epochs", type=int, default=1)
    chosen = parser.parse_args(arguments)
    store = TokenStore.open(chosen.store)
    corpus = first_documents(store.corpus, chosen.documents)
    continues = tokenizer.load(store.tokenizer_dir).continuing_tokens()
    failed = 0
    for input_format, masking in VARIANTS:
        options = InstanceOptions(
            chosen.seq_length, chosen.seq_length * 20 // 128,
            input_format=input_format, masking=masking,
        )  # fmt: skip
        print(f"\n{input_format} {masking}")
        for name, (found, expected) in compare(corpus, continues, options, chosen.epochs).items():
            allowed = tolerance(name, expected, options)
            is_off = abs(found - expected) > allowed
            failed += is_off
            print(
                f"  {name:34} {found:12.4f} {expected:12.4f} +-{allowed:.4f}{'  OFF' if is_off else ''}"
            )
    return int(failed > 0)


def first_documents(corpus: Corpus, count: int) -> Corpus:
    documents = corpus.documents[: count + 1]
    sentences = corpus.sentences[: documents[-1] + 1]
    tokens, groups = corpus.tokens[: sentences[-1]], corpus.groups[:count]
    return Corpus(
        tokens, sentences, documents, groups, corpus.digest, corpus.vocab_size, corpus.special
    )


if __name__ == "__main__":
    raise SystemExit(main())
