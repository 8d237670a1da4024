"""Look at a token store: `mslt-ds inspect`.

Its figures, and any training instance as text, by the code that training uses: what a mask hides,
where the segments end, which label they have.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from mslt_ds.data import tokenizer
from mslt_ds.data.instances import InstanceArrays, InstanceOptions, first_sentence
from mslt_ds.data.loader import InstanceSequence
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import DataError

_BARS = 40  # characters
_FREQUENT = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="token store that prepare has made")
    parser.add_argument(
        "--instance", type=int, metavar="I", help="print instance I of the epoch, in its order"
    )
    parser.add_argument("--epoch", type=int, default=0, metavar="E", help="default: 0")
    parser.add_argument("--seed", type=int, default=42, help="the recipe's seed (default: 42)")
    parser.add_argument("--seq-length", type=int, default=128, metavar="N", help="default: 128")
    parser.add_argument(
        "--max-predictions", type=int, metavar="N", help="default: 20 of 128, in proportion"
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
    predictions = arguments.max_predictions or min(length, math.ceil(length * 20 / 128))
    sequence = InstanceSequence(store, InstanceOptions(length, predictions), arguments.seed)
    print("\n".join(describe_instance(sequence, arguments.epoch, arguments.instance)))
    return 0


def figures(store: TokenStore) -> list[str]:
    """Lines about what the store holds."""
    names = _tokens(store)
    counts = store.token_counts
    order = np.argsort(-counts, kind="stable")[:_FREQUENT]
    unknown = tokenizer.load(store.tokenizer_dir).token_to_id(tokenizer.SPECIAL["unk"])
    sentences, documents = (
        np.diff(store.corpus.sentences),
        np.diff(store.corpus.sentences[store.corpus.documents]),
    )
    return [
        f"{store.path}  digest {store.digest[:16]}",
        f"  made of         {', '.join(source['name'] for source in store.manifest['sources'])}",
        f"  documents       {store.num_documents:,}",
        f"  sentences       {store.num_sentences:,}",
        f"  tokens          {store.num_tokens:,} ({store.corpus.tokens.dtype})",
        f"  vocabulary      {store.vocab_size:,}, of which {(counts > 0).sum():,} occur",
        f"  unknown         {counts[unknown] / store.num_tokens:.4%}",
        f"  unigram entropy {store.unigram_entropy():.4f} nats",
        f"  most frequent   {' '.join(names[i] for i in order if counts[i])}",
        "",
        *_histogram("tokens in a sentence", sentences),
        "",
        *_histogram("tokens in a document", documents),
    ]


def describe_instance(sequence: InstanceSequence, epoch: int, instance: int) -> list[str]:
    """Lines about instance `instance` of the epoch, as training meets it."""
    if epoch < 0 or not 0 <= instance < sequence.length:
        raise DataError(
            f"--instance: {instance} of epoch {epoch}; epochs begin at 0 and have the instances 0 "
            f"to {sequence.length - 1:,} at this sequence length"
        )
    entries, keys = sequence.entries(epoch * sequence.length + instance, 1)
    arrays = InstanceArrays(*(t.numpy() for t in sequence.build(entries, keys).values()))
    sentence = int(first_sentence(entries)[0])
    documents = sequence.store.corpus.documents
    document = int(np.searchsorted(documents, sentence, side="right")) - 1
    is_random = bool(arrays.next_sentence_labels[0])
    length = int(arrays.attention_mask[0].sum())
    masked = int(arrays.masked_weights[0].sum())
    pieces = _pieces(arrays, _tokens(sequence.store))
    in_b = arrays.token_type_ids[0, :length]
    return [
        f"instance {instance:,} of {sequence.length:,} in epoch {epoch}, seed {sequence.seed}",
        f"  document    {document:,}, from its sentence {sentence - int(documents[document]):,} on",
        f"  tokens      {length} of {sequence.options.seq_length}, {masked} masked",
        f"  label       {int(is_random)}: B is {'random' if is_random else 'what follows A'}",
        f"  segment 0   {' '.join(piece for piece, b in zip(pieces, in_b, strict=True) if not b)}",
        f"  segment 1   {' '.join(piece for piece, b in zip(pieces, in_b, strict=True) if b)}",
        "  {what the model sees <- what it has to say}",
    ]


def _pieces(arrays: InstanceArrays, names: list[str]) -> list[str]:
    """The tokens of the first instance, each masked one with the one it stands for."""
    length = int(arrays.attention_mask[0].sum())
    pieces = [names[number] for number in arrays.input_ids[0, :length]]
    for column in range(int(arrays.masked_weights[0].sum())):
        position, label = arrays.masked_positions[0, column], arrays.masked_labels[0, column]
        pieces[position] = f"{{{pieces[position]} <- {names[label]}}}"
    return pieces


def _tokens(store: TokenStore) -> list[str]:
    """Tokens by number."""
    names = [""] * store.vocab_size
    for token, number in tokenizer.load(Path(store.tokenizer_dir)).get_vocab().items():
        names[number] = token
    return names


def _histogram(title: str, values: np.ndarray) -> list[str]:
    """Bars over ranges that double, with the median in the title."""
    exponents = np.bincount(np.log2(values).astype(np.int64))
    lines = [f"  {title}: median {np.median(values):,.0f}, longest {values.max():,}"]
    for exponent, count in enumerate(exponents):
        if count:
            bar = "#" * math.ceil(_BARS * count / exponents.max())
            low, high = 2**exponent, 2 ** (exponent + 1) - 1
            lines.append(f"  {low:>9,} to {high:>9,} {count:>12,} {bar}")
    return lines
