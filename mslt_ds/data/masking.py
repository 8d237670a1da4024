"""Masking: which positions an instance predicts, and what the model sees there.

    token       positions one by one (Devlin et al. 2019, "BERT", section 3.1)
    whole_word  words, all their pieces or none (google-research/bert, "whole word masking")
    ngram       runs of 1 to 3 words, n of them with a probability in proportion to 1/n (Lan et al.
                2020, "ALBERT", section 4.1)
    span        runs of words, their number geometric with p = 0.2 and at most 10, so 3.8 in the
                mean (Joshi et al. 2020, "SpanBERT", section 3.1)

Positions, or the words that runs begin with, are taken in random order until the instance has as many
predictions as it may have: 15 % of its length, rounded. A run that no longer fits is shortened by
words; a word that doesn't fit, and a run that overlaps another, is skipped. So a word is never split,
no run crosses a separator, and fewer tokens are predicted if no word is short enough for the rest. A
word is a token with the tokens that continue it (word_starts.py).

80 % of the chosen tokens become [MASK], 10 % a random token, and 10 % stay. This is drawn for each
token, or with `span` for each run as a whole, as in SpanBERT.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from mslt_ds.data.compiled import below, compiled, uniform

Masking = Literal["token", "whole_word", "ngram", "span"]
_NGRAM_WORDS = 3
_SPAN_WORDS, _SPAN_P = 10, 0.2


def run_weights(masking: Masking) -> np.ndarray:
    """Cumulative weights of runs of 1, 2, ... words, (longest,) float64; empty for `token`."""
    words = {"token": 0, "whole_word": 1, "ngram": _NGRAM_WORDS, "span": _SPAN_WORDS}[masking]
    lengths = np.arange(1, words + 1)
    return np.cumsum((1 - _SPAN_P) ** lengths if masking == "span" else 1 / lengths)


@compiled
def choose_tokens(candidates, num_candidates, budget, chosen, state):
    """Mark `budget` of the positions candidates[:num_candidates] in `chosen`. Shuffles `candidates`."""
    for i in range(budget):
        j = i + below(state, num_candidates - i)
        candidates[i], candidates[j] = candidates[j], candidates[i]
        chosen[candidates[i]] = True
    return budget


@compiled
def choose_words(
    ids, candidates, num_candidates, budget, continues, weights,
    begins, ends, chosen, run_begins, state,
):  # fmt: skip
    """Mark at most `budget` positions of whole words in `chosen`. Returns how many.

    ids: (seq_length,) tokens
    candidates: the positions that aren't special, rising; overwritten
    continues: (vocab_size,) bool, tokens that continue a word
    weights: see run_weights
    begins, ends: scratch space, (seq_length,)
    run_begins: (seq_length,) bool, set at the first position of each run
    """
    num_words = 0
    for i in range(num_candidates):
        position = candidates[i]
        token = ids[position]  # one that is damaged is none of the vocabulary
        continued = token < len(continues) and continues[token]
        if i > 0 and candidates[i - 1] == position - 1 and continued:
            ends[num_words - 1] = position + 1
        else:
            begins[num_words] = position
            ends[num_words] = position + 1
            num_words += 1
    order = candidates
    for i in range(num_words):
        order[i] = i
    count = 0
    for i in range(num_words):
        if count == budget:
            break
        j = i + below(state, num_words - i)
        order[i], order[j] = order[j], order[i]
        first = order[i]
        words = 1
        while (
            words < len(weights)
            and first + words < num_words
            and begins[first + words] == ends[first + words - 1]
        ):
            words += 1
        if len(weights) > 1:
            drawn = uniform(state) * weights[words - 1]
            words = 1
            while drawn >= weights[words - 1]:
                words += 1
        while words > 0 and ends[first + words - 1] - begins[first] > budget - count:
            words -= 1
        free = words > 0
        for word in range(first, first + words):
            free = free and not chosen[begins[word]]
        if free:
            run_begins[begins[first]] = True
            for position in range(begins[first], ends[first + words - 1]):
                chosen[position] = True
                count += 1
    return count


@compiled
def hide(
    ids, length, chosen, run_begins, whole_runs, mask_id, vocab_size,
    positions, labels, used, state,
):  # fmt: skip
    """Write the chosen positions, their tokens as labels, and 1 in `used`; then replace the tokens.

    whole_runs: whether one draw decides for a whole run, which begins at one of `run_begins`
    """
    column = 0
    masked = False
    replaced = False
    for position in range(length):
        if not chosen[position]:
            continue
        positions[column] = position
        labels[column] = ids[position]
        used[column] = 1.0
        column += 1
        if not whole_runs or run_begins[position]:
            masked = uniform(state) < 0.8
            replaced = not masked and uniform(state) >= 0.5
        if masked:
            ids[position] = mask_id
        elif replaced:
            ids[position] = below(state, vocab_size)
    positions[column:] = 0
    labels[column:] = 0
    used[column:] = 0.0
