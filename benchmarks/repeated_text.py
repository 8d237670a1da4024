"""Makes text from which a model learns to copy: each document is a piece of a sentence and its copy.

    python -m benchmarks.repeated_text --input FILE... --output FILE [--least-words 5] [--most-words 12]
                                       [--documents N] [--dropped P] [--replaced P] [--rotated P] [--seed N]

Every sentence is cut into pieces whose lengths are random between the two bounds. Half of the copies
are exact. In the others each word is dropped or replaced (by another word of the text) with the given
probabilities. The words of a share of the copies are rotated, so that a word's position alone doesn't
give its position in the other line. The order of the two lines is random. The input is plain text with
a paragraph on each line; the output depends on the input and the options only.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from mslt_ds.data.prepare.segment import sentences

Words = list[str]


def pieces(paths: Sequence[Path], least: int, most: int, draw: random.Random) -> Iterator[Words]:
    """Pieces of sentences, `least` to `most` words each; a shorter rest of a sentence is dropped."""
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                for sentence in sentences(line.strip()):
                    words = sentence.split()
                    while len(words) >= least:
                        cut = draw.randint(least, most)
                        yield words[:cut]
                        words = words[cut:]


def noisy_copy(
    words: Words, others: Words, draw: random.Random, options: argparse.Namespace
) -> Words:
    """A copy of `words`, by the options' probabilities; `others` holds the words to replace by."""
    copy = list(words)
    if draw.random() < 0.5:
        copy = [
            draw.choice(others) if draw.random() < options.replaced else word
            for word in words
            if draw.random() >= options.dropped
        ] or copy
    if draw.random() < options.rotated:
        at = draw.randrange(len(copy))
        copy = copy[at:] + copy[:at]
    return copy


def documents(options: argparse.Namespace) -> Iterator[str]:
    """Documents of two lines and a blank line."""
    draw = random.Random(options.seed)
    before: Words = []
    for words in pieces(options.input, options.least_words, options.most_words, draw):
        both = [words, noisy_copy(words, before or words, draw, options)]
        draw.shuffle(both)
        yield "".join(f"{' '.join(line)}\n" for line in both) + "\n"
        before = words


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--input", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--least-words", type=int, default=5)
    parser.add_argument("--most-words", type=int, default=12)
    parser.add_argument("--documents", type=int, help="number of documents (default: all)")
    parser.add_argument("--dropped", type=float, default=0.15)
    parser.add_argument("--replaced", type=float, default=0.0)
    parser.add_argument("--rotated", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with options.output.open("w", encoding="utf-8") as file:
        file.writelines(islice(documents(options), options.documents))


if __name__ == "__main__":
    main()
