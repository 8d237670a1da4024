"""Training instances by the rules of the original BERT, in compiled code.

The rules are those of `create_pretraining_data.py` of google-research/bert (Devlin et al. 2019,
"BERT", appendix A.2): sentences of one document are gathered into a chunk until they reach a
target length; the target is the longest possible, or, for a `short_seq_prob` share of the
documents, drawn once for the whole document. A random cut makes the chunk's sentences segments A
and B; for half of the chunks, and for all of a single sentence, B is replaced by sentences of
another document and those that B would have had are put back. The pair is shortened token by
token, at a random end of the longer segment. 15 % of the positions are masked, 80/10/10.

Notable: every draw comes from a stream of the instance itself, seeded by (corpus, seed, epoch,
document, first sentence). So an instance is built from its first sentence alone, without
replaying its document, and the index of an epoch needs one word for each instance.
One rule differs: the original tries ten times to find another document and then takes what it
has; here B never comes from A's document.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mslt_ds.data.compiled import below, compiled, derive, key_of, uniform
from mslt_ds.data.store import Corpus
from mslt_ds.errors import RecipeError

# An index entry: the number of masked positions in the high 16 bits, the instance's first
# sentence, counted from the corpus's beginning, in the low 48.
_MASKED_SHIFT = np.uint64(48)
_SENTENCE_BITS = np.uint64((1 << 48) - 1)
_SPECIAL = 3  # [CLS] A [SEP] B [SEP]


@dataclass(frozen=True)
class InstanceOptions:
    """What instances are like. `seq_length`, `max_predictions`: tokens."""

    seq_length: int
    max_predictions: int
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1

    def __post_init__(self) -> None:
        if self.seq_length < _SPECIAL + 2:
            raise RecipeError(
                f"data.seq_length: {self.seq_length} is too short for two segments and their "
                f"special tokens; choose {_SPECIAL + 2} or more"
            )

    @lru_cache  # noqa: B019 (a few values, which live as long as the process anyway)
    def masked_counts(self) -> np.ndarray:
        """Masked positions of an instance by its length in tokens, (seq_length + 1,) int64."""
        return np.array(
            [
                min(
                    self.max_predictions,
                    max(1, round(length * self.masked_lm_prob)),
                    max(0, length - _SPECIAL),
                )
                for length in range(self.seq_length + 1)
            ],
            dtype=np.int64,
        )


def epoch_key(digest: str, seed: int, epoch: int) -> np.uint64:
    """The key that all draws of an epoch derive from."""
    return key_of("instances", digest, seed, epoch)


@dataclass
class InstanceArrays:
    """Instances to train on; int64 but where it says otherwise."""

    input_ids: np.ndarray  # (instances, seq_length)
    token_type_ids: np.ndarray  # (instances, seq_length): 0 [CLS] A [SEP] and padding, 1 B [SEP]
    attention_mask: np.ndarray  # (instances, seq_length) bool
    masked_positions: np.ndarray  # (instances, max_predictions), rising; 0 where unused
    masked_labels: np.ndarray  # (instances, max_predictions); 0 where unused
    masked_weights: np.ndarray  # (instances, max_predictions) float32: 1, or 0 where unused
    next_sentence_labels: np.ndarray  # (instances,): 1 where B is random

    @classmethod
    def empty(cls, count: int, options: InstanceOptions) -> InstanceArrays:
        tokens, predictions = (count, options.seq_length), (count, options.max_predictions)
        return cls(
            np.empty(tokens, np.int64),
            np.empty(tokens, np.int64),
            np.empty(tokens, np.bool_),
            np.empty(predictions, np.int64),
            np.empty(predictions, np.int64),
            np.empty(predictions, np.float32),
            np.empty(count, np.int64),
        )


def build(
    corpus: Corpus, options: InstanceOptions, key: np.uint64, entries: np.ndarray
) -> InstanceArrays:
    """The instances of index `entries`, (instances,) uint64, of the epoch with `key`."""
    arrays = InstanceArrays.empty(len(entries), options)
    special = corpus.special
    _build(
        corpus.tokens, corpus.sentences, corpus.documents, key, entries,
        options.masked_counts(), options.short_seq_prob,
        corpus.vocab_size, special.pad, special.cls, special.sep, special.mask,
        arrays.input_ids, arrays.token_type_ids, arrays.attention_mask,
        arrays.masked_positions, arrays.masked_labels, arrays.masked_weights,
        arrays.next_sentence_labels,
    )  # fmt: skip
    return arrays


def index_documents(
    corpus: Corpus, options: InstanceOptions, key: np.uint64, first: int, last: int
) -> np.ndarray:
    """Index entries of the documents `first` to `last` (excluded), in order, (instances,) uint64"""
    # A chunk uses up at least one sentence.
    entries = np.empty(corpus.documents[last] - corpus.documents[first], np.uint64)
    count = _index(
        corpus.sentences, corpus.documents, key, first, last,
        options.masked_counts(), options.short_seq_prob, entries,
    )  # fmt: skip
    return entries[:count]


def num_masked(entries: np.ndarray) -> np.ndarray:
    """Masked positions of each instance, (instances,) int64."""
    return (entries >> _MASKED_SHIFT).astype(np.int64)


def first_sentence(entries: np.ndarray) -> np.ndarray:
    """First sentence of each instance, counted from the corpus's beginning, (instances,) int64."""
    return (entries & _SENTENCE_BITS).astype(np.int64)


@compiled
def _target_length(document_key, most_tokens, short_seq_prob):
    """Tokens that the chunks of a document aim at: drawn once for all of them, as the original
    does."""
    state = np.array([derive(document_key, -1)], dtype=np.uint64)
    if uniform(state) < short_seq_prob:
        return 2 + below(state, most_tokens - 1)
    return most_tokens


@compiled
def _choose_segments(sentences, documents, document, first, target, state):
    """Sentences of A: first to a_end, of B: b_first to b_end; whether B is random."""
    document_end = documents[document + 1]
    chunk_end = first + 1
    while chunk_end < document_end and sentences[chunk_end] - sentences[first] < target:
        chunk_end += 1

    a_end = first + 1
    if chunk_end - first >= 2:
        a_end = first + 1 + below(state, chunk_end - first - 1)
    if chunk_end - first >= 2 and uniform(state) >= 0.5:
        return a_end, a_end, chunk_end, False

    other = below(state, len(documents) - 2)
    if other >= document:
        other += 1
    b_target = target - (sentences[a_end] - sentences[first])
    other_end = documents[other + 1]
    b_first = documents[other] + below(state, other_end - documents[other])
    b_end = b_first + 1
    while b_end < other_end and sentences[b_end] - sentences[b_first] < b_target:
        b_end += 1
    return a_end, b_first, b_end, True


@compiled
def _index(sentences, documents, key, first, last, masked_counts, short_seq_prob, entries):
    most_tokens = len(masked_counts) - 1 - _SPECIAL
    state = np.empty(1, np.uint64)
    count = 0
    for document in range(first, last):
        document_key = derive(key, document)
        target = _target_length(document_key, most_tokens, short_seq_prob)
        start = documents[document]
        while start < documents[document + 1]:
            state[0] = derive(document_key, start - documents[document])
            a_end, b_first, b_end, is_random = _choose_segments(
                sentences, documents, document, start, target, state
            )
            pair = sentences[a_end] - sentences[start] + sentences[b_end] - sentences[b_first]
            masked = masked_counts[min(pair, most_tokens) + _SPECIAL]
            entries[count] = (np.uint64(masked) << _MASKED_SHIFT) | np.uint64(start)
            count += 1
            start = a_end if is_random else b_end
    return count


@compiled
def _build(
    tokens, sentences, documents, key, entries, masked_counts, short_seq_prob,
    vocab_size, pad_id, cls_id, sep_id, mask_id,
    input_ids, token_type_ids, attention_mask,
    masked_positions, masked_labels, masked_weights, next_sentence_labels,
):  # fmt: skip
    seq_length = len(masked_counts) - 1
    most_tokens = seq_length - _SPECIAL
    state = np.empty(1, np.uint64)
    candidates = np.empty(seq_length, np.int64)
    chosen = np.empty(seq_length, np.bool_)
    for row in range(len(entries)):
        start = np.int64(entries[row] & _SENTENCE_BITS)
        document = np.searchsorted(documents, start, side="right") - 1
        document_key = derive(key, document)
        target = _target_length(document_key, most_tokens, short_seq_prob)
        state[0] = derive(document_key, start - documents[document])
        a_end, b_first, b_end, is_random = _choose_segments(
            sentences, documents, document, start, target, state
        )

        a_low, a_high = sentences[start], sentences[a_end]
        b_low, b_high = sentences[b_first], sentences[b_end]
        while a_high - a_low + b_high - b_low > most_tokens:
            front = uniform(state) < 0.5
            if a_high - a_low > b_high - b_low:
                if front:
                    a_low += 1
                else:
                    a_high -= 1
            elif front:
                b_low += 1
            else:
                b_high -= 1

        length_a = a_high - a_low
        length = length_a + b_high - b_low + _SPECIAL
        input_ids[row, 0] = cls_id
        for i in range(length_a):
            input_ids[row, 1 + i] = tokens[a_low + i]
        input_ids[row, 1 + length_a] = sep_id
        for i in range(b_high - b_low):
            input_ids[row, 2 + length_a + i] = tokens[b_low + i]
        input_ids[row, length - 1] = sep_id
        input_ids[row, length:] = pad_id
        token_type_ids[row, : 2 + length_a] = 0
        token_type_ids[row, 2 + length_a : length] = 1
        token_type_ids[row, length:] = 0
        attention_mask[row, :length] = True
        attention_mask[row, length:] = False
        next_sentence_labels[row] = is_random

        # The first `masked` of a shuffle of all positions but the special ones.
        num_candidates = length - _SPECIAL
        for i in range(num_candidates):
            candidates[i] = i + 1 if i < length_a else i + 2
        masked = masked_counts[length]
        chosen[:length] = False
        for i in range(masked):
            j = i + below(state, num_candidates - i)
            candidates[i], candidates[j] = candidates[j], candidates[i]
            chosen[candidates[i]] = True
        column = 0
        for position in range(length):
            if not chosen[position]:
                continue
            masked_positions[row, column] = position
            masked_labels[row, column] = input_ids[row, position]
            masked_weights[row, column] = 1.0
            column += 1
            if uniform(state) < 0.8:
                input_ids[row, position] = mask_id
            elif uniform(state) >= 0.5:
                input_ids[row, position] = below(state, vocab_size)
        masked_positions[row, column:] = 0
        masked_labels[row, column:] = 0
        masked_weights[row, column:] = 0.0
