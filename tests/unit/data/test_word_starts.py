"""Which tokens continue a word, by kind of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mslt_ds.data.word_starts import continuing_tokens, text_of, word_marks


def continuing(backend: Tokenizer) -> dict[str, bool]:
    vocabulary = backend.get_vocab()
    found = continuing_tokens(backend, max(vocabulary.values()) + 1)
    return {token: bool(found[number]) for token, number in vocabulary.items()}


def bpe(tokens: list[str]) -> Tokenizer:
    return Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))


def byte_level(text: str) -> str:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[
        0
    ][0]


def test_wordpiece():
    tokens = {"[UNK]": 0, "a": 1, "##a": 2, ".": 3}
    assert continuing(Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))) == {
        "[UNK]": False, "a": False, "##a": True, ".": False,
    }  # fmt: skip


EXPECTED = {
    " the": False, "ing": True, ".": False, " .": False, "'s": False, "3": True, "\u00e9t": True,
    "\n": False, "\u732b": False, "\u0e41\u0e21": False, "\u05d0\u05d1": True, "\uac00": True, "\u0e49": True,
}  # fmt: skip


def test_byte_level_bpe():
    backend = bpe([byte_level(text) for text in EXPECTED])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert continuing(backend) == {
        byte_level(text): is_inner for text, is_inner in EXPECTED.items()
    }


def test_bytes_of_a_character_stay_together():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = bpe(sorted(alphabet))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    found = continuing(backend)
    for character in "\u00e9\u05d0\u732b":
        first, *others = byte_level(character)
        assert found[first] == (character != "\u732b") and all(found[other] for other in others)


@pytest.mark.parametrize("part", ["metaspace", "prepend"])
def test_pieces(part: str):
    texts = {
        text.replace(" ", "\u2581"): is_inner for text, is_inner in EXPECTED.items() if text != "\n"
    }
    backend = bpe([*texts, "<0xE7>", "<0x8C>", "<0xC3>"])
    if part == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        backend.normalizer = normalizers.Prepend("\u2581")
    assert continuing(backend) == texts | {"<0xE7>": False, "<0x8C>": True, "<0xC3>": True}


def test_special_tokens_begin_words():
    backend = bpe(["abc", "mask"])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.add_special_tokens(["mask"])
    assert continuing(backend) == {"abc": True, "mask": False}


@given(
    st.text(min_size=1).filter(
        lambda text: not any("\ud800" <= c <= "\udfff" or c == "\ufffd" for c in text)
    )
)
def test_byte_level_tokens_are_read_as_written(text: str):
    backend = bpe(["a"])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    expected = text.removeprefix(" ")
    assert text_of(byte_level(text), word_marks(backend), begins_word=False) == expected
