"""Documents of two lines: pieces of sentences as long as asked, and the share of copies that are exact."""

from __future__ import annotations

import argparse
from collections import Counter

import pytest

from benchmarks.repeated_text import documents

SENTENCES = [
    " ".join(f"w{number}x{word}" for word in range(20 + number % 7)) + "." for number in range(400)
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(SENTENCES) + "\n")
    return path


def made(text, **changes) -> list[tuple[list[str], list[str]]]:
    options = {
        "input": [text], "least_words": 5, "most_words": 12, "dropped": 0.15, "replaced": 0.0,
        "rotated": 0.0, "seed": 1,
    }  # fmt: skip
    pairs = []
    for document in documents(argparse.Namespace(**options | changes)):
        first, second, blank, end = document.split("\n")
        assert blank == end == ""
        pairs.append((first.split(), second.split()))
    assert len(pairs) > 500
    return pairs


def test_pieces_are_of_one_sentence_and_as_long_as_asked(text):
    for pair in made(text, dropped=0.0, least_words=6, most_words=9):
        assert pair[0] == pair[1]
        assert 6 <= len(pair[0]) <= 9
        assert len({word.partition("x")[0] for word in pair[0]}) == 1


def test_half_are_exact_and_the_others_lack_the_share_of_words(text):
    pairs = made(text, dropped=0.3)
    exact = sum(first == second for first, second in pairs) / len(pairs)
    assert 0.45 < exact < 0.62  # a noisy copy of a short piece may lack nothing
    whole = sum(max(map(len, pair)) for pair in pairs)
    kept = sum(min(map(len, pair)) for pair in pairs) / whole
    assert 0.82 < kept < 0.88  # half of the documents lack 30 %
    assert all(Counter(min(pair, key=len)) <= Counter(max(pair, key=len)) for pair in pairs)


def test_rotated_and_replaced_words(text):
    rotated = made(text, dropped=0.0, rotated=1.0)
    assert all(sorted(first) == sorted(second) for first, second in rotated)
    assert sum(first != second for first, second in rotated) > len(rotated) / 2
    replaced = made(text, dropped=0.0, replaced=1.0)
    different = sum(not set(first) & set(second) for first, second in replaced)
    assert 0.3 < different / len(replaced) < 0.6


def test_the_same_seed_makes_the_same_text(text):
    assert made(text, rotated=0.5) == made(text, rotated=0.5)
    assert made(text, rotated=0.5) != made(text, rotated=0.5, seed=2)
