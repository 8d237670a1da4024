"""Which tokens continue a word, by the marks of each kind of tokenizer.

    WordPiece       a continuing token begins with `##`
    byte-level BPE  a word's first token begins with a blank, written `Ġ` (Radford et al. 2019, "GPT-2")
    SentencePiece   a word's first token begins with a blank, written `▁`; Unigram, and Llama's BPE

In the latter two, punctuation has no mark; it stands alone here, as in BERT. So does each token of a
script that is written without blanks between words, as Chinese and Thai.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

_BLANK_OF_PIECES = "\u2581"
_BYTE_TOKENS = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
# Thai, Lao; Burmese; Khmer; kana and ideographs with their supplements, as code points.
_WITHOUT_BLANKS = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x312F), (0x31A0, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


@dataclass(frozen=True)
class WordMarks:
    """How a tokenizer marks words.

    continues: the beginning of a token that continues a word; "" if beginnings are marked instead
    begins: a blank as it stands at the beginning of a word's first token; "" if there is none
    is_byte_level: whether each character of a token stands for a byte
    """

    continues: str = ""
    begins: str = ""
    is_byte_level: bool = False


def word_marks(backend: Tokenizer) -> WordMarks:
    model = backend.model
    if isinstance(model, models.WordPiece):
        return WordMarks(continues=model.continuing_subword_prefix)
    if isinstance(model, models.BPE) and model.continuing_subword_prefix:
        return WordMarks(continues=model.continuing_subword_prefix)
    parts = b"".join(
        part.__getstate__() for part in (backend.normalizer, backend.pre_tokenizer) if part
    )
    if b'"ByteLevel"' in parts:
        return WordMarks(begins=" ", is_byte_level=True)
    if b'"Metaspace"' in parts or _BLANK_OF_PIECES.encode() in parts:
        return WordMarks(begins=_BLANK_OF_PIECES)
    return WordMarks()


def text_of(token: str, marks: WordMarks, *, begins_word: bool) -> str:
    """The token as it is written in a text, "" if it isn't whole characters.

    begins_word: only of a token that begins a word, without its mark; "" of others
    """
    text = _bytes_of(token, marks).decode("utf-8", "replace")
    if "\ufffd" in text:
        return ""
    if begins_word:
        if marks.continues:
            return "" if text.startswith(marks.continues) else text
        return text.removeprefix(marks.begins) if text.startswith(marks.begins) else ""
    return text.removeprefix(marks.continues).removeprefix(marks.begins)


def continuing_tokens(backend: Tokenizer, vocab_size: int) -> np.ndarray:
    """For each token id, whether it continues the word before it, (vocab_size,) bool."""
    marks = word_marks(backend)
    continues = np.zeros(vocab_size, np.bool_)
    special = backend.get_added_tokens_decoder()
    for token, number in backend.get_vocab().items():
        if number not in special:
            continues[number] = _continues(token, marks)
    return continues


def _continues(token: str, marks: WordMarks) -> bool:
    if marks.continues:
        return token.startswith(marks.continues)
    if not marks.begins:
        return False
    content = _bytes_of(token, marks)
    if content.startswith(marks.begins.encode()):
        return False
    if 0x80 <= content[0] < 0xC0:  # inside a character
        return True
    character = content.decode("utf-8", "replace")[0]
    if (
        character == "\ufffd"
    ):  # the beginning of one; of two bytes, its script is written with blanks
        return content[0] < 0xE0
    if unicodedata.category(character)[0] == "M":
        return True
    return character.isalnum() and not _stands_alone(ord(character))


def _stands_alone(code_point: int) -> bool:
    place = bisect(_WITHOUT_BLANKS, (code_point, 0x110000)) - 1
    return place >= 0 and code_point <= _WITHOUT_BLANKS[place][1]


def _bytes_of(token: str, marks: WordMarks) -> bytes:
    if marks.is_byte_level:
        alphabet = _byte_alphabet()
        if all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
    return _BYTE_TOKENS.get(token, token.encode("utf-8", "surrogatepass"))


@lru_cache
def _byte_alphabet() -> dict[str, int]:
    """Character -> the byte that byte-level BPE writes so: printable ones of Latin-1 stay, the others are
    numbered from 256 on (Radford et al. 2019, section 2.2, `bytes_to_unicode` of their program)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    alphabet = {chr(byte): byte for byte in kept}
    alphabet |= {chr(256 + number): byte for number, byte in enumerate(others)}
    assert alphabet.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return alphabet
