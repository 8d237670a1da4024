"""The original BERT's instances in plain Python: slow, and simple enough to be believed.

Follows the structure of `create_pretraining_data.py` of google-research/bert: documents are lists
of sentences, sentences lists of token numbers. Where the random numbers come from is left to the
caller, so that it can be compared draw by draw with the compiled code, or, with numbers of its
own, in its statistics.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mslt_ds.data.instances import InstanceOptions
from mslt_ds.data.store import SpecialTokens


class Draws(Protocol):
    def uniform(self) -> float: ...
    def below(self, bound: int) -> int: ...


class PythonDraws:
    """Python's own Mersenne twister."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(repr(seed))

    def uniform(self) -> float:
        return self._random.random()

    def below(self, bound: int) -> int:
        return self._random.randrange(bound)


class Splitmix:
    """splitmix64 in unlimited whole numbers."""

    def __init__(self, state: int) -> None:
        self._state = state

    def uniform(self) -> float:
        self._state = (self._state + 0x9E3779B97F4A7C15) % 2**64
        return (mix(self._state) >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        return int(self.uniform() * bound)


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def derive(key: int, number: int) -> int:
    return mix(key ^ mix((number + 1) * 0x9E3779B97F4A7C15 % 2**64))


@dataclass
class Instance:
    document: int
    start: int  # of the chunk, in sentences of its document
    tokens: list[int]  # masked
    segment_ids: list[int]
    is_random_next: bool
    masked_positions: list[int]
    masked_labels: list[int]
    other_document: int | None = None  # that B comes from, if random
    fates: list[str] = field(default_factory=list)  # of the masked positions


def instances_of_document(
    documents: list[list[list[int]]],
    document: int,
    options: InstanceOptions,
    special: SpecialTokens,
    vocab_size: int,
    document_draws: Draws,
    instance_draws: Callable[[int], Draws],
) -> list[Instance]:
    """`instance_draws(start)`: the random numbers of the instance that begins at this sentence."""
    sentences = documents[document]
    max_num_tokens = options.seq_length - 3
    target_seq_length = max_num_tokens
    if document_draws.uniform() < options.short_seq_prob:
        target_seq_length = 2 + document_draws.below(max_num_tokens - 1)

    instances = []
    chunk: list[list[int]] = []
    i = 0
    while i < len(sentences):
        chunk.append(sentences[i])
        if i == len(sentences) - 1 or sum(map(len, chunk)) >= target_seq_length:
            start = i - len(chunk) + 1
            draws = instance_draws(start)
            a_end = 1
            if len(chunk) >= 2:
                a_end = 1 + draws.below(len(chunk) - 1)
            tokens_a = [token for sentence in chunk[:a_end] for token in sentence]
            tokens_b: list[int] = []
            other = None
            if len(chunk) == 1 or draws.uniform() < 0.5:
                other = draws.below(len(documents) - 1)
                other += other >= document
                first = draws.below(len(documents[other]))
                for sentence in documents[other][first:]:
                    tokens_b += sentence
                    if len(tokens_b) >= target_seq_length - len(tokens_a):
                        break
                i -= len(chunk) - a_end  # put the unused sentences back
            else:
                tokens_b = [token for sentence in chunk[a_end:] for token in sentence]
            truncate_pair(tokens_a, tokens_b, max_num_tokens, draws)
            tokens = [special.cls, *tokens_a, special.sep, *tokens_b, special.sep]
            segment_ids = [0] * (len(tokens_a) + 2) + [1] * (len(tokens_b) + 1)
            frame = (0, len(tokens_a) + 1, len(tokens) - 1)
            masked, positions, labels, fates = mask(
                tokens, frame, options, special, vocab_size, draws
            )
            instances.append(
                Instance(
                    document, start, masked, segment_ids, other is not None,
                    positions, labels, other, fates,
                )
            )  # fmt: skip
            chunk = []
        i += 1
    return instances


def truncate_pair(tokens_a: list[int], tokens_b: list[int], longest: int, draws: Draws) -> None:
    while len(tokens_a) + len(tokens_b) > longest:
        longer = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
        if draws.uniform() < 0.5:
            del longer[0]
        else:
            longer.pop()


def mask(
    tokens: list[int],
    frame: tuple[int, ...],
    options: InstanceOptions,
    special: SpecialTokens,
    vocab_size: int,
    draws: Draws,
) -> tuple[list[int], list[int], list[int], list[str]]:
    candidates = [position for position in range(len(tokens)) if position not in frame]
    count = min(
        options.max_predictions,
        max(1, round(len(tokens) * options.masked_lm_prob)),
        len(candidates),
    )
    for i in range(count):  # the beginning of a shuffle
        j = i + draws.below(len(candidates) - i)
        candidates[i], candidates[j] = candidates[j], candidates[i]
    output = list(tokens)
    fates = []
    for position in sorted(candidates[:count]):
        if draws.uniform() < 0.8:
            output[position] = special.mask
            fates.append("mask")
        elif draws.uniform() < 0.5:
            fates.append("keep")
        else:
            output[position] = draws.below(vocab_size)
            fates.append("random")
    positions = sorted(candidates[:count])
    return output, positions, [tokens[position] for position in positions], fates
