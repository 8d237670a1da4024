"""Tokenizers of any kind: found on disk, loaded, checked, and their special tokens known by role.

A tokenizer that is loaded has to find the words of its own vocabulary: loaders have been known to
ignore a vocabulary without an error.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from mslt_ds.data.bert_tokenizer import from_vocabulary_file, put_between, read_settings
from mslt_ds.data.store import TOKENIZER, SpecialTokens
from mslt_ds.data.word_starts import continuing_tokens, text_of, word_marks
from mslt_ds.errors import DataError, failures_as

ROLES = {
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
    "pad": ("pad_token",),
    "unk": ("unk_token",),
}
"""The roles of special tokens, with the keys of tokenizer_config.json that name their tokens. A language
model's tokenizer has no token for a sequence's class; the one that begins a text takes its place."""
_USUAL = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
}
"""Their names where no file has them; a token that has to be added gets the first one."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip
"""All files that `AutoTokenizer` may read. They are named one by one because a tokenizer's folder may
hold a token store or a model as well. Their order is part of an evaluation's fingerprint."""
PROBE = "The quick brown fox — naïve, 3.14 — jumped over 東京's lazy dogs, didn't it? Unaffable!"
"""A text on which tokenizers with different settings are likely to differ."""
_CHECKED_WORDS = 100
_MOST_IDS = 1 << 24  # fifty times as many as any known vocabulary; arrays of this size are made


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and its special tokens.

    special: role -> token, for each of ROLES; "unk" only if the tokenizer has one
    added: those of them that the tokenizer lacked, and that were added behind its own tokens
    """

    backend: Tokenizer
    special: dict[str, str]
    added: tuple[str, ...] = ()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id, special ones among them."""
        return self.backend.get_vocab()

    @property
    def vocab_size(self) -> int:
        """The highest token id plus 1."""
        return max(self.vocabulary.values()) + 1

    @property
    def special_tokens(self) -> SpecialTokens:
        names = ("pad", "cls", "sep", "mask")
        return SpecialTokens(**{name: self.vocabulary[self.special[name]] for name in names})

    @property
    def unknown_id(self) -> int | None:
        """The id of what the vocabulary doesn't cover; None if it covers everything."""
        return self.vocabulary.get(self.special.get("unk", ""))

    def continuing_tokens(self) -> np.ndarray:
        """For each token id, whether it continues the word before it, (vocab_size,) bool."""
        return continuing_tokens(self.backend, self.vocab_size)

    def tokens_by_id(self) -> list[tuple[str, int]]:
        """(token, id) of the whole vocabulary, by rising id."""
        return sorted(self.vocabulary.items(), key=lambda item: item[::-1])

    def digest(self) -> str:
        """A digest of the vocabulary with its ids, in hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.tokens_by_id()).encode()).hexdigest()


class TextEncoder:
    """Encodes the sentences of a store.

    Special tokens that the text spells out are text, as in the original BERT: `[MASK]` becomes the
    pieces of a bracket, a word and a bracket.
    """

    def __init__(self, place: Path) -> None:
        """DataError if the tokenizer at `place` can't be loaded or takes text for special tokens."""
        self._place = place
        tokenizer = self.tokenizer = load(place)
        tokenizer.vocabulary  # noqa: B018 (as it is before the next line)
        self.unknown_id = tokenizer.unknown_id
        self._backend = tokenizer.backend
        spell_out(self._backend)
        for token in tokenizer.special.values():
            number = tokenizer.vocabulary[token]
            if number != self.unknown_id and number in self._ids(f"a {token} b"):
                raise DataError(
                    f"--tokenizer: {place}: {token} written in a text becomes the special token; in "
                    'tokenizer.json, mark it "special": true under added_tokens and use a '
                    "pre_tokenizer that takes it apart, such as BertPreTokenizer"
                )
        # In byte-level BPE the tokens of a word that follows a blank are others, and so are a sentence's that
        # follows another. Instances hold documents without their line ends, so a blank stands there.
        self._between = "" if self._ids("a a")[-1:] == self._ids("a")[-1:] else " "

    def encode(self, sentences: list[str], follows: list[bool]) -> list[list[int]]:
        """The token ids of each sentence. follows: whether it follows another in its document"""
        texts = [
            self._between + sentence if after else sentence
            for sentence, after in zip(sentences, follows, strict=True)
        ]
        with self._problems():  # such as a character that it doesn't know, and no token for these
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _ids(self, text: str) -> list[int]:
        with self._problems():
            return self._backend.encode(text, add_special_tokens=False).ids

    def _problems(self) -> AbstractContextManager[None]:
        return failures_as(
            lambda problem: DataError(
                f"--tokenizer: {self._place}: can't encode a text ({problem}); check unk_token or unk_id "
                "and the vocabulary in its tokenizer.json"
            )
        )


def spell_out(backend: Tokenizer) -> None:
    """Let the tokenizer take special tokens that a text spells out for text. tokenizer.json doesn't store
    this setting."""
    backend.encode_special_tokens = True
    if isinstance(backend.model, models.Unigram):
        # Its search finds any piece of the vocabulary, so the special ones get names that no text has.
        special = {
            token.content for token in backend.get_added_tokens_decoder().values() if token.special
        }
        settings = json.loads(backend.to_str())["model"]
        pieces = [
            (f"\0{piece}\0" if piece in special else piece, score)
            for piece, score in settings["vocab"]
        ]
        backend.model = models.Unigram(
            pieces, settings["unk_id"], settings.get("byte_fallback", False)
        )


def find(place: Path) -> Path:
    """The tokenizer at `place`: a folder of its own or inside a token store, or a vocabulary file.

    DataError if there is none.
    """
    if not place.exists():
        raise DataError(f"--tokenizer: {place}: no such folder or file")
    if place.is_file():
        return place
    folder = place
    if (folder / TOKENIZER).is_dir():
        folder = folder / TOKENIZER
    if main_file(folder) is None:
        raise DataError(
            f"--tokenizer: {folder}: no tokenizer here; expected tokenizer.json or vocab.txt, a "
            "token store, or a vocabulary file"
        )
    return folder


def main_file(folder: Path) -> Path | None:
    """The file that holds a folder's vocabulary; None if it holds no tokenizer."""
    files = (folder / "tokenizer.json", folder / "vocab.txt")
    return next((file for file in files if file.is_file()), None)


def load(place: Path) -> TextTokenizer:
    """The tokenizer at `place`: a folder, a tokenizer.json, or a vocabulary file of one token a line.
    Truncation and padding are switched off. A special token that it lacks is added behind its own.

    DataError if it can't be read, gives two tokens one id, or doesn't find the words of its own
    vocabulary.
    """
    with failures_as(lambda problem: DataError(f"--tokenizer: {place}: can't be read ({problem})")):
        backend = _backend(place)
        _check_ids(backend, place)
        folder = place if place.is_dir() else place.parent
        tokenizer = _with_roles(backend, _settings(folder))
        _check_words(tokenizer, place)
    return tokenizer


def _backend(place: Path) -> Tokenizer:
    file = (main_file(place) or place / "vocab.txt") if place.is_dir() else place
    if file.suffix != ".json":
        return from_vocabulary_file(file)
    backend = Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _settings(folder: Path) -> dict[str, Any]:
    """The keys of the folder's tokenizer_config.json and, where that lacks them, special_tokens_map.json."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = read_settings(folder / name)
        found |= {key: value for key, value in content.items() if value is not None}
    return found


def _with_roles(backend: Tokenizer, settings: dict[str, Any]) -> TextTokenizer:
    """Find the special tokens by role, and add those that are missing or that another role has."""
    vocabulary = backend.get_vocab()
    special: dict[str, str] = {}
    added = []
    for role, keys in ROLES.items():
        configured = [settings[key] for key in keys if key in settings]
        names = [one.get("content") if isinstance(one, dict) else one for one in configured]
        if role == "unk":
            names.append(_unknown_of(backend))
        names = [name for name in (*names, *_USUAL[role]) if isinstance(name, str)]
        if role != "unk":  # which is never written into an instance
            names = [name for name in names if name not in special.values()]
        token = next((name for name in names if name in vocabulary), None)
        if token is None and role != "unk":
            token = names[0]
            added.append(token)
        if token is not None:
            special[role] = token
    backend.add_special_tokens(added)
    tokenizer = TextTokenizer(backend, special, tuple(added))
    # A language model's tokenizer writes no token behind a text.
    ids, frame = backend.encode("a").ids, tokenizer.special_tokens
    if (ids[0], ids[-1]) != (frame.cls, frame.sep):
        put_between(backend, special["cls"], special["sep"])
    return tokenizer


def _unknown_of(backend: Tokenizer) -> str | None:
    model = backend.model
    if isinstance(model, models.Unigram):
        number = json.loads(backend.to_str())["model"]["unk_id"]
        return None if number is None else backend.id_to_token(number)
    return getattr(model, "unk_token", None)


def _check_ids(backend: Tokenizer, place: Path) -> None:
    """DataError if two tokens have the same id, or one is out of all proportion."""
    by_id = sorted(backend.get_vocab().items(), key=lambda item: item[::-1])
    if not by_id or by_id[-1][1] >= _MOST_IDS:
        raise DataError(
            f"--tokenizer: {place}: its vocabulary has {len(by_id)} tokens with ids up to "
            f"{by_id[-1][1] if by_id else 0}; expected some tokens, and ids below {_MOST_IDS}"
        )
    for (token, number), (other, next_number) in pairwise(by_id):
        if number == next_number:
            raise DataError(
                f"--tokenizer: {place}: {token!r} and {other!r} both have the id {number}; give one of "
                "them an id of its own in tokenizer.json"
            )


def _check_words(tokenizer: TextTokenizer, place: Path) -> None:
    """DataError if most words of the vocabulary aren't found in a text, as with a wrong normalizer."""
    marks = word_marks(tokenizer.backend)
    words = sorted(
        (word, number)
        for token, number in tokenizer.vocabulary.items()
        if (word := text_of(token, marks, begins_word=True)).isalpha()
    )
    words = words[:: max(1, len(words) // _CHECKED_WORDS)]
    encodings = tokenizer.backend.encode_batch_fast(
        [f"a {word}" for word, _ in words], add_special_tokens=False
    )
    lost = [
        word
        for (word, number), encoding in zip(words, encodings, strict=True)
        if number not in encoding.ids
    ]
    if len(lost) * 2 > len(words):
        raise DataError(
            f"--tokenizer: {place}: {len(lost)} of {len(words)} words of its own vocabulary, such as "
            f"{lost[0]!r}, aren't found in a text: it doesn't use its vocabulary; check "
            "do_lower_case in its tokenizer_config.json, or normalizer and pre_tokenizer in its "
            "tokenizer.json"
        )
