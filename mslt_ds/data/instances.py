"""Training instances and their index.

`InstanceMaker` is what the loader and the index ask of any kind of instances. `InstanceOptions` makes those
of masked language modeling, in compiled code: pairing.py (`nsp`, `sop`) or packing.py (`full_sentences`,
`doc_sentences`) chooses the text of an instance, masking.py what is masked; this module combines them.

Every draw comes from a random stream of the instance itself, seeded by (corpus, seed, epoch, document,
first sentence). An instance can therefore be built from its first sentence, without replaying its
document, and the index of an epoch needs one word for each instance. For pairs, the first sentences
depend on (corpus, seed, epoch, document); for packed sentences on the corpus and, if instances cross
documents, on all documents before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mslt_ds.data.compiled import below, compiled, derive, key_of
from mslt_ds.data.masking import Masking, choose_tokens, choose_words, hide, run_weights
from mslt_ds.data.packing import pack
from mslt_ds.data.pairing import choose_pair, shorten, target_length
from mslt_ds.data.store import Corpus, TokenStore
from mslt_ds.errors import RecipeError

NO_LABEL = -100
"""The label of instances that have none; torch's cross-entropy leaves it out."""

# An index entry: the number of positions with a label in the high 16 bits, the instance's first
# sentence, counted from the corpus's beginning, in the low 48.
_PREDICTIONS_SHIFT = np.uint64(48)
_SENTENCE_BITS = np.uint64((1 << 48) - 1)
_SOP, _FULL_SENTENCES = 1, 2
FORMATS: dict[str, int] = {"nsp": 0, "sop": _SOP, "full_sentences": _FULL_SENTENCES}
FORMATS["doc_sentences"] = 3
"""The formats of masked instances -> their numbers in compiled code."""

Layout = dict[str, tuple[tuple[int, ...], type]]
"""Name of a field -> the shape and the type of its array."""


class InstanceMaker(ABC):
    """Makes the instances of one sequence length from a corpus.

    A frozen dataclass: its `repr` is part of an index's name, so its fields are all that the entries
    depend on, beside the corpus, the seed and the epoch.
    """

    seq_length: int
    """Tokens of the longest instance."""
    input_format: str
    """The recipe's `data.input_format`, for messages."""
    token_fields: tuple[str, ...] = ("input_ids",)
    """The fields that hold tokens, which a damaged store shows in."""

    @property
    def reads_words(self) -> bool:
        """Whether `index_documents` and `build` get to know which tokens continue a word."""
        return False

    def problem(self, store: TokenStore) -> str | None:
        """Why no such instances can be made from the store; None if they can."""
        return None

    @abstractmethod
    def layout(self, count: int) -> Layout:
        """The arrays that hold `count` instances, `attention_mask` among them."""

    @abstractmethod
    def index_documents(
        self,
        corpus: Corpus,
        continues: np.ndarray,
        key: np.uint64,
        first: int,
        last: int,
        start: int | None = None,
    ) -> tuple[np.ndarray, int]:
        """Index entries (`entries_of`) of the instances that begin in the documents `first` to `last`
        (excluded), in order, (instances,) uint64, and the sentence that the next instance begins with.

        continues: (vocab_size,) bool, see word_starts.py; (0,) unless `reads_words`
        key: of the epoch
        start: the sentence that the first of them begins with, where it isn't that of document `first`
        """

    @abstractmethod
    def build(
        self,
        corpus: Corpus,
        continues: np.ndarray,
        keys: np.ndarray,
        entries: np.ndarray,
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Fill `arrays`, which are of `layout`, with the instances of index `entries`, (instances,) uint64.

        keys: (instances,) uint64, the epoch_key of the epoch that each entry belongs to
        """


@dataclass(frozen=True)
class InstanceOptions(InstanceMaker):
    """What masked instances are like, and their maker. `seq_length`, `max_predictions`: tokens."""

    token_fields = ("input_ids", "masked_labels")  # a label may be the only place of a token

    seq_length: int
    max_predictions: int
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1
    input_format: str = "nsp"  # a key of FORMATS
    masking: Masking = "token"

    def __post_init__(self) -> None:
        if self.seq_length < self.num_special + 2:
            raise RecipeError(
                f"data.seq_length: {self.seq_length} is too short for two segments and their "
                f"special tokens; choose {self.num_special + 2} or more"
            )

    @property
    def is_paired(self) -> bool:
        """Whether instances are two segments with a label."""
        return self.input_format in ("nsp", "sop")

    @property
    def num_special(self) -> int:
        """Tokens of the frame: [CLS] A [SEP] B [SEP], or [CLS] sentences [SEP]."""
        return 3 if self.is_paired else 2

    @lru_cache  # noqa: B019 (a few values, which live as long as the process anyway)
    def masked_counts(self) -> np.ndarray:
        """Positions to mask of an instance by its length in tokens, (seq_length + 1,) int64."""
        return np.array(
            [
                min(self.max_predictions, max(1, round(length * self.masked_lm_prob)))
                for length in range(self.seq_length + 1)
            ],
            dtype=np.int64,
        )

    @property
    def reads_words(self) -> bool:
        return self.masking != "token"

    def problem(self, store: TokenStore) -> str | None:
        groups = store.corpus.groups
        if self.input_format != "nsp" or (groups != groups[0]).any():
            return None
        return (
            f"{store.num_documents} documents, all the same; next-sentence prediction draws its random "
            "sentences from another document, so at least 2 that differ are needed. Separate documents by "
            "an empty line and prepare the store again, or choose another data.input_format"
        )

    def layout(self, count: int) -> Layout:
        tokens, predictions = (count, self.seq_length), (count, self.max_predictions)
        return {
            "input_ids": (tokens, np.int64),
            "token_type_ids": (tokens, np.int64),
            "attention_mask": (tokens, np.bool_),
            "masked_positions": (predictions, np.int64),
            "masked_labels": (predictions, np.int64),
            "masked_weights": (predictions, np.float32),
            "pair_labels": ((count,), np.int64),
        }

    def index_documents(
        self,
        corpus: Corpus,
        continues: np.ndarray,
        key: np.uint64,
        first: int,
        last: int,
        start: int | None = None,
    ) -> tuple[np.ndarray, int]:
        begin = int(corpus.documents[first]) if start is None else start
        # An instance uses up at least one sentence.
        entries = np.empty(max(0, int(corpus.documents[last]) - begin), np.uint64)
        count, following = _index(
            corpus.tokens, corpus.sentences, corpus.documents, corpus.groups, continues, key,
            first, last, begin,
            FORMATS[self.input_format], self.masked_counts(), self.num_special,
            self.short_seq_prob, run_weights(self.masking), corpus.special.sep, entries,
        )  # fmt: skip
        return entries[:count], following

    def build(
        self,
        corpus: Corpus,
        continues: np.ndarray,
        keys: np.ndarray,
        entries: np.ndarray,
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        special, made = corpus.special, InstanceArrays(**arrays)
        _build(
            corpus.tokens, corpus.sentences, corpus.documents, corpus.groups, continues, keys, entries,
            FORMATS[self.input_format], self.masked_counts(), self.num_special,
            self.short_seq_prob, run_weights(self.masking), self.masking == "span",
            corpus.vocab_size, special.pad, special.cls, special.sep, special.mask,
            made.input_ids, made.token_type_ids, made.attention_mask,
            made.masked_positions, made.masked_labels, made.masked_weights,
            made.pair_labels,
        )  # fmt: skip


def epoch_key(digest: str, seed: int, epoch: int) -> np.uint64:
    """The key that all draws of an epoch derive from."""
    return key_of("instances", digest, seed, epoch)


@dataclass
class InstanceArrays:
    """Masked instances; int64 but where it says otherwise."""

    input_ids: np.ndarray  # (instances, seq_length)
    token_type_ids: np.ndarray  # (instances, seq_length): 0 [CLS] A [SEP] and padding, 1 B [SEP]
    attention_mask: np.ndarray  # (instances, seq_length) bool
    masked_positions: np.ndarray  # (instances, max_predictions), rising; 0 where unused
    masked_labels: np.ndarray  # (instances, max_predictions); 0 where unused
    masked_weights: np.ndarray  # (instances, max_predictions) float32: 1, or 0 where unused
    pair_labels: np.ndarray  # (instances,): 1 B is random or swapped, 0 it isn't; NO_LABEL

    @classmethod
    def empty(cls, count: int, options: InstanceOptions) -> InstanceArrays:
        """Arrays for `count` instances, to be filled by `build`."""
        layout = options.layout(count)
        return cls(**{name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()})


def entries_of(num_predictions: np.ndarray, first_sentence: np.ndarray) -> np.ndarray:
    """Index entries, (instances,) uint64, from what the two functions below read out of them."""
    high = num_predictions.astype(np.uint64) << _PREDICTIONS_SHIFT
    return high | first_sentence.astype(np.uint64)


def num_predictions(entries: np.ndarray) -> np.ndarray:
    """Positions with a label of each instance, (instances,) int64."""
    return (entries >> _PREDICTIONS_SHIFT).astype(np.int64)


def first_sentence(entries: np.ndarray) -> np.ndarray:
    """First sentence of each instance, counted from the corpus's beginning, (instances,) int64."""
    return (entries & _SENTENCE_BITS).astype(np.int64)


@compiled
def _measure(sentences, documents, groups, document, start, target, form, most_tokens, state):
    """Tokens of the instance, special ones left out, the separators of documents among them, and
    the sentence that the next one begins with. No tokens: no instance."""
    if form < _FULL_SENTENCES:
        a_low, a_high, b_low, b_high, _, following = choose_pair(
            sentences, documents, groups, document, start, target, form == _SOP, state
        )
        return min(a_high - a_low + b_high - b_low, most_tokens), 0, following
    following, count, borders = pack(
        sentences, documents, document, start, most_tokens, form == _FULL_SENTENCES
    )
    return min(count, most_tokens), borders, following


@compiled
def _assemble(
    tokens, sentences, documents, groups, document, start, target, form, most_tokens, sep_id,
    ids, segments, candidates, state,
):  # fmt: skip
    """Write an instance's tokens (all but [CLS]) and segments, and the positions that may be masked.

    -> its length, the number of those positions, its label, the sentence that the next one begins
    with. Length 0: no instance.
    """
    num_candidates = 0
    length = 1
    segments[0] = 0
    if form < _FULL_SENTENCES:
        a_low, a_high, b_low, b_high, label, following = choose_pair(
            sentences, documents, groups, document, start, target, form == _SOP, state
        )
        if a_low == a_high:
            return 0, 0, label, following
        a_low, a_high, b_low, b_high = shorten(a_low, a_high, b_low, b_high, most_tokens, state)
        for segment in range(2):
            low, high = (a_low, a_high) if segment == 0 else (b_low, b_high)
            for i in range(low, high):
                ids[length] = tokens[i]
                segments[length] = segment
                candidates[num_candidates] = length
                num_candidates += 1
                length += 1
            ids[length] = sep_id
            segments[length] = segment
            length += 1
        return length, num_candidates, label, following

    following, count, _ = pack(
        sentences, documents, document, start, most_tokens, form == _FULL_SENTENCES
    )
    low = sentences[start]
    high = sentences[following]
    if count > most_tokens:
        low += below(state, count - most_tokens + 1)
        high = low + most_tokens
    while low < high:
        piece_end = min(high, sentences[documents[document + 1]])
        for i in range(low, piece_end):
            ids[length] = tokens[i]
            segments[length] = 0
            candidates[num_candidates] = length
            num_candidates += 1
            length += 1
        ids[length] = sep_id
        segments[length] = 0
        length += 1
        low = piece_end
        document += 1
    return length, num_candidates, NO_LABEL, following


@compiled
def _index(
    tokens, sentences, documents, groups, continues, key, first, last, start,
    form, masked_counts, num_special, short_seq_prob, weights, sep_id, entries,
):  # fmt: skip
    seq_length = len(masked_counts) - 1
    most_tokens = seq_length - num_special
    state = np.empty(1, np.uint64)
    ids, segments = np.empty(seq_length, np.int64), np.empty(seq_length, np.int64)
    candidates = np.empty(seq_length, np.int64)
    begins, ends = np.empty(seq_length, np.int64), np.empty(seq_length, np.int64)
    chosen, run_begins = np.empty(seq_length, np.bool_), np.empty(seq_length, np.bool_)
    count = 0
    document = first - 1
    document_key, target = key, most_tokens
    while start < documents[last]:
        if document < first or start >= documents[document + 1]:
            document += 1
            while start >= documents[document + 1]:
                document += 1
            document_key = derive(key, document)
            target = target_length(document_key, most_tokens, short_seq_prob)
        state[0] = derive(document_key, start - documents[document])
        if len(weights) == 0:
            length, borders, following = _measure(
                sentences, documents, groups, document, start, target, form, most_tokens, state
            )
            masked = min(masked_counts[min(length + borders, most_tokens) + num_special], length)
        else:
            # How many tokens whole words fill depends on the words.
            length, num_candidates, _, following = _assemble(
                tokens, sentences, documents, groups, document, start, target, form, most_tokens,
                sep_id, ids, segments, candidates, state,
            )  # fmt: skip
            chosen[:length] = False
            masked = choose_words(
                ids, candidates, num_candidates, masked_counts[length], continues, weights,
                begins, ends, chosen, run_begins, state,
            )  # fmt: skip
        if length > 0:
            entries[count] = (np.uint64(masked) << _PREDICTIONS_SHIFT) | np.uint64(start)
            count += 1
        start = following
    return count, start


@compiled
def _build(
    tokens, sentences, documents, groups, continues, keys, entries,
    form, masked_counts, num_special, short_seq_prob, weights, whole_runs,
    vocab_size, pad_id, cls_id, sep_id, mask_id,
    input_ids, token_type_ids, attention_mask,
    masked_positions, masked_labels, masked_weights, pair_labels,
):  # fmt: skip
    seq_length = len(masked_counts) - 1
    most_tokens = seq_length - num_special
    state = np.empty(1, np.uint64)
    candidates = np.empty(seq_length, np.int64)
    begins, ends = np.empty(seq_length, np.int64), np.empty(seq_length, np.int64)
    chosen, run_begins = np.empty(seq_length, np.bool_), np.empty(seq_length, np.bool_)
    for row in range(len(entries)):
        start = np.int64(entries[row] & _SENTENCE_BITS)
        document = np.searchsorted(documents, start, side="right") - 1
        document_key = derive(keys[row], document)
        target = target_length(document_key, most_tokens, short_seq_prob)
        state[0] = derive(document_key, start - documents[document])
        ids = input_ids[row]
        length, num_candidates, label, _ = _assemble(
            tokens, sentences, documents, groups, document, start, target, form, most_tokens,
            sep_id, ids, token_type_ids[row], candidates, state,
        )  # fmt: skip
        ids[0] = cls_id
        ids[length:] = pad_id
        token_type_ids[row, length:] = 0
        attention_mask[row, :length] = True
        attention_mask[row, length:] = False
        pair_labels[row] = label
        chosen[:length] = False
        run_begins[:length] = False
        if len(weights) == 0:
            budget = min(masked_counts[length], num_candidates)
            choose_tokens(candidates, num_candidates, budget, chosen, state)
        else:
            choose_words(
                ids, candidates, num_candidates, masked_counts[length], continues, weights,
                begins, ends, chosen, run_begins, state,
            )  # fmt: skip
        hide(
            ids, length, chosen, run_begins, whole_runs, mask_id, vocab_size,
            masked_positions[row], masked_labels[row], masked_weights[row], state,
        )  # fmt: skip
