"""Segments A and B of an instance: `nsp` as in the original BERT, `sop` as in ALBERT.

The rules are those of `create_pretraining_data.py` of google-research/bert (Devlin et al. 2019,
"BERT", appendix A.2). Sentences of one document are gathered into a chunk until they reach a target
length, which is the longest possible one or, for a share `short_seq_prob` of the documents, drawn once
for the whole document. A random cut divides the chunk into segments A and B. The pair is truncated
token by token, at a random end of the longer segment.

    nsp  For half of the chunks, and for all chunks of a single sentence, B is replaced by sentences
         of another document, and the sentences that B would have had begin the next chunk. Label 1:
         B is random. The original tries ten times to find another document and may then use the
         same one; here B never comes from A's document or from a copy of it.
    sop  Half of the pairs are swapped (Lan et al. 2020, "ALBERT", section 3.1). Label 1: swapped.
         A chunk of one sentence is cut between two of its tokens; one of a single token is skipped.
         (ALBERT's program gives such a chunk a random B and the label of a swapped pair.)
"""

from __future__ import annotations

import numpy as np

from mslt_ds.data.compiled import below, compiled, derive, uniform

# There is another group, unless the file is damaged.
_MOST_DRAWS = 1 << 27


@compiled
def target_length(document_key, most_tokens, short_seq_prob):
    """The target length of all chunks of a document, in tokens."""
    state = np.array([derive(document_key, -1)], dtype=np.uint64)
    if uniform(state) < short_seq_prob:
        return 2 + below(state, most_tokens - 1)
    return most_tokens


@compiled
def choose_pair(sentences, documents, groups, document, first, target, swaps, state):
    """Choose the pair of the chunk that begins with sentence `first`.

    Returns a_low, a_high, b_low, b_high (the segments as ranges of tokens), the label, and the first
    sentence of the next chunk. If A is empty, the chunk gives no instance.

    groups: (num_documents,) uint64, equal for documents of equal text
    swaps: True for `sop`, False for `nsp`
    """
    document_end = documents[document + 1]
    chunk_end = first + 1
    while chunk_end < document_end and sentences[chunk_end] - sentences[first] < target:
        chunk_end += 1

    low, high = sentences[first], sentences[chunk_end]
    a_end = first + 1
    if chunk_end - first >= 2:
        a_end = first + 1 + below(state, chunk_end - first - 1)
    if swaps:
        cut = sentences[a_end]
        if chunk_end - first == 1:
            if high - low == 1:
                return low, low, low, low, 0, chunk_end
            cut = low + 1 + below(state, high - low - 1)
        if uniform(state) < 0.5:
            return cut, high, low, cut, 1, chunk_end
        return low, cut, cut, high, 0, chunk_end
    if chunk_end - first >= 2 and uniform(state) >= 0.5:
        return low, sentences[a_end], sentences[a_end], high, 0, chunk_end

    other = document
    for _ in range(_MOST_DRAWS):
        if groups[other] != groups[document]:
            break
        other = below(state, len(documents) - 2)
        if other >= document:
            other += 1
    b_target = target - (sentences[a_end] - low)
    other_end = documents[other + 1]
    b_first = documents[other] + below(state, other_end - documents[other])
    b_end = b_first + 1
    while b_end < other_end and sentences[b_end] - sentences[b_first] < b_target:
        b_end += 1
    return low, sentences[a_end], sentences[b_first], sentences[b_end], 1, a_end


@compiled
def shorten(a_low, a_high, b_low, b_high, most_tokens, state):
    """The pair, truncated to `most_tokens` tokens."""
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
    return a_low, a_high, b_low, b_high
