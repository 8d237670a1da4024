"""Training instances in plain Python: slow, and simple enough to be believed.

Follows the structure of `create_pretraining_data.py` of google-research/bert: documents are lists
of sentences, sentences lists of token numbers. Where the random numbers come from is left to the
caller, so that it can be compared draw by draw with the compiled code, or, with numbers of its
own, in its statistics. `continues` holds the tokens that go on with a word.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mslt_ds.data.instances import NO_LABEL, InstanceOptions
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
    label: int
    masked_positions: list[int]
    masked_labels: list[int]
    other_document: int | None = None  # that B comes from, if random
    runs: list[list[int]] = field(default_factory=list)  # positions chosen together


@dataclass(frozen=True)
class Frame:
    """What all instances have in common."""

    options: InstanceOptions
    special: SpecialTokens
    vocab_size: int
    continues: Collection[int] = ()
    groups: Sequence[int] | None = None  # equal for documents of equal text


def instances_of_document(
    documents: list[list[list[int]]],
    document: int,
    frame: Frame,
    document_draws: Draws,
    instance_draws: Callable[[int], Draws],
) -> list[Instance]:
    """Pairs. `instance_draws(start)`: the random numbers of the instance that begins at this
    sentence."""
    options, special = frame.options, frame.special
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
            tokens_b = [token for sentence in chunk[a_end:] for token in sentence]
            other = None
            label = 0
            if options.input_format == "sop":
                if len(chunk) == 1:
                    if len(tokens_a) == 1:  # nothing to put in order
                        chunk = []
                        i += 1
                        continue
                    cut = 1 + draws.below(len(tokens_a) - 1)
                    tokens_a, tokens_b = tokens_a[:cut], tokens_a[cut:]
                if draws.uniform() < 0.5:
                    tokens_a, tokens_b = tokens_b, tokens_a
                    label = 1
            elif len(chunk) == 1 or draws.uniform() < 0.5:
                label = 1
                other = _other_document(document, len(documents), frame.groups, draws)
                first = draws.below(len(documents[other]))
                tokens_b = []
                for sentence in documents[other][first:]:
                    tokens_b += sentence
                    if len(tokens_b) >= target_seq_length - len(tokens_a):
                        break
                i -= len(chunk) - a_end  # put the unused sentences back
            truncate_pair(tokens_a, tokens_b, max_num_tokens, draws)
            tokens = [special.cls, *tokens_a, special.sep, *tokens_b, special.sep]
            segment_ids = [0] * (len(tokens_a) + 2) + [1] * (len(tokens_b) + 1)
            instances.append(
                _masked(document, start, tokens, segment_ids, label, frame, draws, other)
            )
            chunk = []
        i += 1
    return instances


def _other_document(
    document: int, num_documents: int, groups: Sequence[int] | None, draws: Draws
) -> int:
    while True:
        other = draws.below(num_documents - 1)
        other += other >= document
        if groups is None or groups[other] != groups[document]:
            return other


def packed_instances(
    documents: list[list[list[int]]], frame: Frame, instance_draws: Callable[[int, int], Draws]
) -> list[Instance]:
    """Of all documents. `instance_draws(document, start)` as above."""
    options, special = frame.options, frame.special
    room = options.seq_length - 2
    crosses = options.input_format == "full_sentences"
    places = deque(
        (document, number)
        for document, sentences in enumerate(documents)
        for number in range(len(sentences))
    )
    instances = []
    while places:
        document, start = places.popleft()
        draws = instance_draws(document, start)
        content = list(documents[document][start])
        if len(content) > room:
            first = draws.below(len(content) - room + 1)
            content = content[first : first + room]
        last = document
        while places:
            next_document, number = places[0]
            addition = list(documents[next_document][number])
            if next_document != last:
                if not crosses:
                    break
                addition.insert(0, special.sep)
            # A sentence that was cut has filled the instance.
            if len(documents[document][start]) > room or len(content) + len(addition) > room:
                break
            content += addition
            last = next_document
            places.popleft()
        tokens = [special.cls, *content, special.sep]
        instances.append(
            _masked(document, start, tokens, [0] * len(tokens), NO_LABEL, frame, draws)
        )
    return instances


def truncate_pair(tokens_a: list[int], tokens_b: list[int], longest: int, draws: Draws) -> None:
    while len(tokens_a) + len(tokens_b) > longest:
        longer = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
        if draws.uniform() < 0.5:
            del longer[0]
        else:
            longer.pop()


def _masked(
    document: int,
    start: int,
    tokens: list[int],
    segment_ids: list[int],
    label: int,
    frame: Frame,
    draws: Draws,
    other: int | None = None,
) -> Instance:
    options, special = frame.options, frame.special
    candidates = [
        position for position, token in enumerate(tokens) if token not in (special.cls, special.sep)
    ]
    count = min(options.max_predictions, max(1, round(len(tokens) * options.masked_lm_prob)))
    if options.masking == "token":
        count = min(count, len(candidates))
        for i in range(count):  # the beginning of a shuffle
            j = i + draws.below(len(candidates) - i)
            candidates[i], candidates[j] = candidates[j], candidates[i]
        runs = [[position] for position in candidates[:count]]
    else:
        runs = _runs_of_words(tokens, candidates, count, frame, draws)
    output = list(tokens)
    for run in sorted(runs):
        fate = ""
        for position in run:
            if not fate or options.masking != "span":
                fate = _fate(draws)
            if fate == "mask":
                output[position] = special.mask
            elif fate == "random":
                output[position] = draws.below(frame.vocab_size)
    positions = sorted(position for run in runs for position in run)
    labels = [tokens[position] for position in positions]
    return Instance(
        document, start, output, segment_ids, label, positions, labels, other, sorted(runs)
    )


def _fate(draws: Draws) -> str:
    if draws.uniform() < 0.8:
        return "mask"
    return "keep" if draws.uniform() < 0.5 else "random"


def _runs_of_words(
    tokens: list[int], candidates: list[int], count: int, frame: Frame, draws: Draws
) -> list[list[int]]:
    """Positions of whole words, run by run, in the order in which they were chosen."""
    words: list[list[int]] = []
    for position in candidates:
        if words and words[-1][-1] == position - 1 and tokens[position] in frame.continues:
            words[-1].append(position)
        else:
            words.append([position])
    longest, weight = {
        "whole_word": (1, lambda n: 1.0),
        "ngram": (3, lambda n: 1 / n),
        "span": (10, lambda n: 0.8**n),
    }[frame.options.masking]
    order = list(range(len(words)))
    taken: set[int] = set()
    runs = []
    for i in range(len(words)):
        if len(taken) == count:
            break
        j = i + draws.below(len(words) - i)
        order[i], order[j] = order[j], order[i]
        run = [words[order[i]]]
        for word in words[order[i] + 1 : order[i] + longest]:
            if word[0] != run[-1][-1] + 1:  # a separator lies between
                break
            run.append(word)
        if longest > 1:
            drawn = draws.uniform() * sum(weight(n + 1) for n in range(len(run)))
            length = 1
            while drawn >= sum(weight(n + 1) for n in range(length)):
                length += 1
            run = run[:length]
        while run and sum(map(len, run)) > count - len(taken):
            run.pop()
        chosen = [position for word in run for position in word]
        if chosen and taken.isdisjoint(chosen):
            taken.update(chosen)
            runs.append(chosen)
    return runs
