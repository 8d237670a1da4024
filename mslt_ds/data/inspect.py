"""`mslt-ds inspect`: figures of a token store, and its training instances as text.

Instances are built by the code that training uses. The text shows what each mask hides, where the
segments end, their label, and which documents packed sentences come from.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import get_args

import numpy as np

from mslt_ds import paths
from mslt_ds.data import tokenizer
from mslt_ds.data.instances import FORMATS, InstanceArrays, InstanceOptions, first_sentence
from mslt_ds.data.loader import InstanceSequence
from mslt_ds.data.masking import Masking
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import DataError

_BARS = 40  # characters
_FREQUENT, _RARE = 20, 10
_AT_ONCE = 1 << 20
_LABELS = {
    "nsp": ("B is what follows A", "B is random"),
    "sop": ("B is what follows A", "swapped, A is what follows B"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "store", type=paths.path, metavar="STORE", help="token store that prepare has made"
    )
    parser.add_argument(
        "--instance", type=int, metavar="I", help="print instance I of the epoch, in its order"
    )
    parser.add_argument("--epoch", type=int, default=0, metavar="E", help="default: 0")
    parser.add_argument("--seed", type=int, default=42, help="the recipe's seed (default: 42)")
    parser.add_argument("--seq-length", type=int, default=128, metavar="N", help="default: 128")
    parser.add_argument(
        "--max-predictions", type=int, metavar="N", help="default: 20 of 128, in proportion"
    )
    parser.add_argument("--input-format", choices=list(FORMATS), default="nsp", help="default: nsp")
    parser.add_argument(
        "--masking", choices=get_args(Masking), default="token", help="default: token"
    )
    parser.add_argument("--verify", action="store_true", help="check every file's checksum")


def run(arguments: argparse.Namespace) -> int:
    store = TokenStore.open(arguments.store)
    if arguments.verify:
        store.verify()
        print(f"{store.path}: every file is as it was written")
    if arguments.instance is None:
        print("\n".join(figures(store)))
        return 0
    length = arguments.seq_length
    options = InstanceOptions(
        length,
        arguments.max_predictions or min(length, math.ceil(length * 20 / 128)),
        input_format=arguments.input_format,
        masking=arguments.masking,
    )
    sequence = InstanceSequence(store, options, arguments.seed, partial(print, file=sys.stderr))
    print("\n".join(describe_instance(sequence, options, arguments.epoch, arguments.instance)))
    return 0


def figures(store: TokenStore) -> list[str]:
    """Lines that describe the content of the store."""
    names = _tokens(store)
    counts = store.token_counts
    order = np.argsort(-counts, kind="stable")[:_FREQUENT]
    used = tokenizer.load(store.tokenizer_dir)
    unknown = 0 if used.unknown_id is None else counts[used.unknown_id]
    words = store.num_tokens - int(counts[used.continuing_tokens()].sum())
    rare = int(((counts > 0) & (counts < _RARE)).sum())
    return [
        f"{store.path}  digest {store.digest[:16]}",
        f"  made of         {', '.join(source['name'] for source in store.manifest['sources'])}",
        f"  documents       {store.num_documents:,}",
        f"  sentences       {store.num_sentences:,}",
        f"  tokens          {store.num_tokens:,} ({store.corpus.tokens.dtype})",
        f"  words           {words:,}, {store.num_tokens / words:.3f} tokens each",
        f"  vocabulary      {store.vocab_size:,}, of which {(counts > 0).sum():,} occur, "
        f"{rare:,} less than {_RARE} times",
        f"  unknown         {unknown / store.num_tokens:.4%}",
        f"  unigram entropy {store.unigram_entropy():.4f} nats",
        f"  most frequent   {' '.join(names[i] for i in order if counts[i])}",
        "",
        *_histogram("tokens in a sentence", _length_counts(store.corpus.sentences)),
        "",
        *_histogram(
            "tokens in a document", _length_counts(store.corpus.documents, store.corpus.sentences)
        ),
    ]


def describe_instance(
    sequence: InstanceSequence, options: InstanceOptions, epoch: int, instance: int
) -> list[str]:
    """Lines that describe instance `instance` of the epoch, in the order of training."""
    if epoch < 0 or not 0 <= instance < sequence.length:
        raise DataError(
            f"--instance: {instance} of epoch {epoch}; epochs begin at 0 and have the instances 0 "
            f"to {sequence.length - 1:,} at this sequence length"
        )
    entries, keys = sequence.entries(epoch * sequence.length + instance, 1)
    arrays = InstanceArrays(
        **{name: tensor.numpy() for name, tensor in sequence.build(entries, keys).items()}
    )
    sentence = int(first_sentence(entries)[0])
    documents = sequence.store.corpus.documents
    document = int(np.searchsorted(documents, sentence, side="right")) - 1
    names = _tokens(sequence.store)
    continues = tokenizer.load(sequence.store.tokenizer_dir).continuing_tokens()
    groups = list(_groups(arrays, continues, options.masking))
    length, masked = int(arrays.attention_mask[0].sum()), sum(map(len, groups))
    return [
        f"instance {instance:,} of {sequence.length:,} in epoch {epoch}, seed {sequence.seed}",
        f"  format      {options.input_format}, masking {options.masking}",
        f"  document    {document:,}, from its sentence {sentence - int(documents[document]):,} on",
        f"  tokens      {length} of {options.seq_length}, {masked} masked in {len(groups)} places",
        *_text(
            arrays,
            options,
            _pieces(arrays, names, groups),
            document,
            names[sequence.store.corpus.special.sep],
        ),
        "  {what the model sees <- what it has to say}",
    ]


def _text(
    arrays: InstanceArrays,
    options: InstanceOptions,
    pieces: list[str],
    document: int,
    separator: str,
) -> Iterator[str]:
    """Lines with the label and the segments of a pair, or the sentences of each document."""
    if options.is_paired:
        label = int(arrays.pair_labels[0])
        yield f"  label       {label}: {_LABELS[options.input_format][label]}"
        titles = ["segment 0", "segment 1"]
    else:
        titles = [f"of {document + i:,}" for i in range(len(pieces))]
    ends = [i + 1 for i, piece in enumerate(pieces) if piece == separator]
    for title, (low, high) in zip(titles, pairwise([0, *ends]), strict=False):
        yield f"  {title:11} {' '.join(piece for piece in pieces[low:high] if piece)}"


def _groups(arrays: InstanceArrays, continues: np.ndarray, masking: Masking) -> Iterator[list[int]]:
    """Groups of masked positions: of a token, of a word, or of adjacent words, depending on `masking`."""
    group: list[int] = []
    for column in range(int(arrays.masked_weights[0].sum())):
        position = int(arrays.masked_positions[0, column])
        is_piece = continues[arrays.masked_labels[0, column]]
        joined = masking in ("ngram", "span") or (masking == "whole_word" and is_piece)
        if group and not (joined and position == group[-1] + 1):
            yield group
            group = []
        group.append(position)
    if group:
        yield group


def _pieces(arrays: InstanceArrays, names: list[str], groups: list[list[int]]) -> list[str]:
    """What to print at each position. The first position of a masked group shows the whole group with
    its labels, the others are empty."""
    length = int(arrays.attention_mask[0].sum())
    pieces = [names[number] for number in arrays.input_ids[0, :length]]
    labels = dict(zip(arrays.masked_positions[0], arrays.masked_labels[0], strict=True))
    for group in groups:
        seen = " ".join(pieces[position] for position in group)
        said = " ".join(names[labels[position]] for position in group)
        for position in group:
            pieces[position] = ""
        pieces[group[0]] = f"{{{seen} <- {said}}}"
    return pieces


def _tokens(store: TokenStore) -> list[str]:
    """The tokens by id."""
    names = [""] * store.vocab_size
    for token, number in tokenizer.load(store.tokenizer_dir).vocabulary.items():
        names[number] = token
    return names


def _length_counts(starts: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """How many parts have each length, (longest + 1,) int64. It works block by block in constant memory.

    starts: where the parts begin, and where the last one ends
    of: maps positions to the unit of the lengths, if it is another one
    """
    counts = np.zeros(1, np.int64)
    for first in range(0, len(starts) - 1, _AT_ONCE):
        borders = starts[first : first + _AT_ONCE + 1]
        found = np.bincount(np.diff(borders if of is None else of[borders]))
        counts, found = sorted((counts, found), key=len)
        found[: len(counts)] += counts
        counts = found
    return counts


def _histogram(title: str, counts: np.ndarray) -> list[str]:
    """A histogram over ranges of doubling width, with the median in its title.

    counts: how many parts have length 0, 1, ..., (longest + 1,) int64
    """
    lengths = np.arange(1, len(counts))
    exponents = np.bincount(np.log2(lengths).astype(np.int64), counts[1:])
    median = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    lines = [f"  {title}: median {median:,}, longest {len(counts) - 1:,}"]
    for exponent, count in enumerate(exponents.astype(np.int64)):
        if count:
            bar = "#" * math.ceil(_BARS * count / exponents.max())
            low, high = 2**exponent, 2 ** (exponent + 1) - 1
            lines.append(f"  {low:>9,} to {high:>9,} {count:>12,} {bar}")
    return lines
