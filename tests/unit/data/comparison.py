"""Compiled instances and those of the plain reference, in one form, to be compared."""

from __future__ import annotations

import numpy as np

from mslt_ds.data.instances import (
    InstanceArrays,
    InstanceOptions,
    epoch_key,
)
from mslt_ds.data.store import Corpus, SpecialTokens
from tests.unit.data.conftest import SPECIAL
from tests.unit.data.reference import (
    Draws,
    Frame,
    Instance,
    PythonDraws,
    Splitmix,
    derive,
    instances_of_document,
    packed_instances,
)

NO_WORDS = np.zeros(0, np.bool_)


def build_all(
    corpus: Corpus,
    options: InstanceOptions,
    seed: int = 1,
    epoch: int = 0,
    continues: np.ndarray = NO_WORDS,
) -> tuple[np.ndarray, InstanceArrays]:
    """Index entries and instances of an epoch."""
    key = epoch_key(corpus.digest, seed, epoch)
    last = len(corpus.documents) - 1
    entries, _ = options.index_documents(corpus, continues, key, 0, last)
    return entries, build_some(corpus, options, key, entries, continues)


def build_some(
    corpus: Corpus,
    options: InstanceOptions,
    key: np.uint64,
    entries: np.ndarray,
    continues: np.ndarray = NO_WORDS,
) -> InstanceArrays:
    arrays = InstanceArrays.empty(len(entries), options)
    options.build(corpus, continues, np.full(len(entries), key), entries, vars(arrays))
    return arrays


def rows(
    arrays: InstanceArrays, options: InstanceOptions, special: SpecialTokens = SPECIAL
) -> list[Instance]:
    """Compiled instances in the reference's form, after a look at their padding."""
    instances = []
    for row in range(len(arrays.input_ids)):
        length = int(arrays.attention_mask[row].sum())
        count = int(arrays.masked_weights[row].sum())
        assert arrays.attention_mask[row, :length].all()
        assert (arrays.input_ids[row, length:] == special.pad).all()
        assert not arrays.token_type_ids[row, length:].any()
        assert (arrays.masked_weights[row, :count] == 1).all()
        assert not arrays.masked_weights[row, count:].any()
        assert not arrays.masked_positions[row, count:].any()
        assert not arrays.masked_labels[row, count:].any()
        assert count <= options.max_predictions
        instances.append(
            Instance(
                -1, -1,
                arrays.input_ids[row, :length].tolist(),
                arrays.token_type_ids[row, :length].tolist(),
                int(arrays.pair_labels[row]),
                arrays.masked_positions[row, :count].tolist(),
                arrays.masked_labels[row, :count].tolist(),
            )
        )  # fmt: skip
    return instances


def unmasked(instance: Instance) -> list[int]:
    """Its tokens before any was replaced."""
    tokens = list(instance.tokens)
    for position, label in zip(instance.masked_positions, instance.masked_labels, strict=True):
        tokens[position] = label
    return tokens


def documents_of(corpus: Corpus) -> list[list[list[int]]]:
    return [
        [
            corpus.tokens[corpus.sentences[s] : corpus.sentences[s + 1]].tolist()
            for s in range(corpus.documents[d], corpus.documents[d + 1])
        ]
        for d in range(len(corpus.documents) - 1)
    ]


def by_the_same_draws(documents: list[list[list[int]]], frame: Frame) -> list[Instance]:
    """The reference's, from the random numbers that the compiled code draws from."""
    key = int(epoch_key("test", 1, 0))
    return _reference(
        documents,
        frame,
        lambda document, start: Splitmix(derive(derive(key, document), start)),
    )


def by_other_draws(documents: list[list[list[int]]], frame: Frame, epoch: int) -> list[Instance]:
    """The reference's, from random numbers of its own."""
    return _reference(
        documents, frame, lambda document, start: PythonDraws((epoch, document, start))
    )


def _reference(documents: list[list[list[int]]], frame: Frame, draws_of) -> list[Instance]:
    if not frame.options.is_paired:
        return packed_instances(documents, frame, draws_of)
    instances = []
    for document in range(len(documents)):

        def draws(start: int, document: int = document) -> Draws:
            return draws_of(document, start)

        instances += instances_of_document(documents, document, frame, draws(-1), draws)
    return instances
