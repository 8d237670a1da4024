"""Vocabularies trained on the text to prepare.

    wordpiece  BERT's (see bert_tokenizer.py)
    bpe        byte-level, which knows every text (Radford et al. 2019, "GPT-2", section 2.2)
    unigram    of SentencePiece's kind, as ALBERT's (Kudo 2018, "Subword regularization", section 3.2)

Equal text gives an equal vocabulary. The trainer of WordPiece in `tokenizers` alone doesn't ensure this:
it numbers the pieces `##x` in the order of a hash table and breaks ties between merges by these
numbers. Here it is given all characters and all continuing characters in sorted order beforehand,
so that nothing depends on that table. The trainer of Unigram sums floating-point numbers in the order of
such a table, so the last pieces of its vocabulary, and the order of some, may differ from one training to the next.

A trained vocabulary must hold the most frequent words: a trainer's counts have overflowed on large
inputs before, and lost "the" (huggingface/tokenizers, issue 437). Unigram's trainer takes the first pieces from
distinct words, each counted once, and so never sees a word that is part of no other; `_unigram` adds such words.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from mslt_ds.data.bert_tokenizer import (
    CONTINUES,
    SPECIAL,
    normalizer,
    pipeline,
    pre_tokenizer,
    put_between,
)
from mslt_ds.data.tokenizer import TextTokenizer
from mslt_ds.errors import DataError

Model = Literal["wordpiece", "bpe", "unigram"]
LEAST_VOCAB_SIZES: dict[Model, int] = {"wordpiece": 200, "bpe": 300, "unigram": 200}
LEAST_ALPHABET = 30
_USUAL_CHARACTERS = 1000  # about as many as BERT's own vocabulary has
# The usual alphabet may miss this share of the text. A larger one is chosen to miss almost nothing.
_MOST_MISSED, _MISSED_BY_LARGER = 1e-4, 1e-6
# Unigram's trainer takes about ten times as long as the others.
_MOST_TRAINING_BYTES: dict[Model, int] = {"wordpiece": 1 << 30, "bpe": 1 << 30, "unigram": 1 << 27}
# A vocabulary of this size has room for the most frequent words of any text, if they are short and make up
# some share of its characters: a text without blanks has "words" that occur a few times.
_ROOM_FOR_WORDS, _SHORT_WORD, _LEAST_SHARE = 5000, 8, 5e-4
_CHECKED_WORDS = 100
_LONGEST_PIECE = 16  # characters; the default of Unigram's trainer
# GPT-2's pattern (`Encoder.pat` in src/encoder.py of openai/gpt-2) with the marks \p{M} beside the letters. As it
# is, it parts a word at each vowel sign of Hindi or Thai.
_BYTE_LEVEL_WORDS = Regex(
    r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
)
_SPACED = normalizer(lowercase=False)
_CHECKED_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class TrainingOptions:
    """What a trained vocabulary depends on, besides the text.

    keep_accents: of lower-cased text
    alphabet: the largest number of characters to keep; None chooses one by the text, see `_alphabet`
    """

    model: Model = "wordpiece"
    vocab_size: int = 30_000
    lowercase: bool = True
    keep_accents: bool = False
    alphabet: int | None = None


def train(texts: Iterable[str], characters: np.ndarray, options: TrainingOptions) -> TextTokenizer:
    """A tokenizer of at most `vocab_size` tokens. It depends on the arguments alone.

    characters: how often each code point occurs in the texts, (0x110000,) int64

    DataError if a vocabulary with room for them lacks some of the most frequent words.
    """
    normalize = _normalizer(options)
    alphabet: list[str] | None = None
    if options.model != "bpe":
        alphabet = _alphabet(characters, normalize, options)
    words: Counter[str] = Counter()
    stride = int(characters.sum()) // _CHECKED_CHARACTERS + 1
    counted = _count_words(texts, words, normalize, _pre_tokenizer(options, alphabet), stride)
    if options.model == "wordpiece":
        backend = _wordpiece(counted, options, alphabet or [])
    elif options.model == "bpe":
        backend = _bpe(counted, options)
    else:
        strange = _strange(characters, normalize, alphabet or [])
        backend = _unigram(counted, options, strange, words)
    trained = TextTokenizer(backend, dict(SPECIAL))
    if options.vocab_size >= _ROOM_FOR_WORDS:
        _check_frequent_words(words, alphabet, trained)
    return trained


def stripped_marks(characters: np.ndarray, options: TrainingOptions) -> float:
    """The share of the text's letters and marks that are marks which the tokenizer takes away, accents of
    Latin, Greek and Cyrillic letters aside: in other scripts they are vowels, or make another letter, as
    the voicing marks of kana do. Letters count as Unicode decomposes them, for the normalizer does so, too.

    characters: as of `train`
    """
    normalize = _normalizer(options)
    counted = stripped = 0
    for code_point in np.flatnonzero(characters):
        for part in unicodedata.normalize("NFD", chr(code_point)):
            kind, times = unicodedata.category(part)[0], int(characters[code_point])
            counted += times * (kind in "LM")
            is_accent = "\u0300" <= part < "\u0370"
            if kind == "M" and not is_accent and not normalize.normalize_str(part):
                stripped += times
    return stripped / max(1, counted)


def sampling_stride(text_bytes: int, model: Model) -> int:
    """n, where the vocabulary of a text of this size is trained on every nth document."""
    return -(-text_bytes // _MOST_TRAINING_BYTES[model])


def _wordpiece(texts: Iterator[str], options: TrainingOptions, alphabet: list[str]) -> Tokenizer:
    continuing = [f"{CONTINUES}{character}" for character in alphabet if _continues(character)]
    trainer = WordPieceTrainer(
        vocab_size=options.vocab_size,
        special_tokens=[*SPECIAL.values(), *alphabet, *continuing],
        # Words are stripped of characters that aren't in the alphabet.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    settings = {
        "alphabet": alphabet,
        "lowercase": options.lowercase,
        "strip_accents": False if options.keep_accents else None,
    }
    learner = pipeline({}, **settings)
    learner.train_from_iterator(texts, trainer)
    # The characters were special tokens only for the trainer; take the vocabulary alone.
    return pipeline(learner.get_vocab(with_added_tokens=True), **settings)


def _bpe(texts: Iterator[str], options: TrainingOptions) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = _normalizer(options)
    backend.pre_tokenizer = _pre_tokenizer(options, None)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    put_between(backend, SPECIAL["cls"], SPECIAL["sep"])
    return backend


def _unigram(
    texts: Iterator[str], options: TrainingOptions, strange: dict[int, str], words: Counter[str]
) -> Tokenizer:
    """strange: characters to leave out, as `str.translate` takes them; the trainer keeps all others
    words: how often each occurs, once the texts are read
    """
    backend = Tokenizer(models.Unigram())
    backend.normalizer = _normalizer(options)
    backend.pre_tokenizer = _pre_tokenizer(options, None)
    backend.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=options.vocab_size,
        special_tokens=list(SPECIAL.values()),
        unk_token=SPECIAL["unk"],
        show_progress=False,
    )
    backend.train_from_iterator((text.translate(strange) for text in texts), trainer)
    model = json.loads(backend.to_str())["model"]
    pieces = _with_frequent_words(model["vocab"], words, options.vocab_size)
    backend.model = models.Unigram(pieces, model["unk_id"], model["byte_fallback"])
    put_between(backend, SPECIAL["cls"], SPECIAL["sep"])
    return backend


def _with_frequent_words(
    pieces: list[tuple[str, float]], words: Counter[str], vocab_size: int
) -> list[tuple[str, float]]:
    """The pieces with their log-probabilities and the most frequent words, a tenth of the vocabulary or as
    many as the trainer left room for: those that are missing fill the room, and then take the places of
    the least probable pieces."""
    known = {piece for piece, _ in pieces}
    total = sum(words.values())
    room = max(0, vocab_size - len(pieces))
    frequent = dict(words.most_common(max(room, vocab_size // 10)))
    missing = [
        (word, math.log(count / total))
        for word, count in frequent.items()
        if count > 1
        and len(word) <= _LONGEST_PIECE
        and word not in known
        and known.issuperset(word)
    ]
    weakest = sorted(
        (score, i)
        for i, (piece, score) in enumerate(pieces)
        if i >= len(SPECIAL) and len(piece) > 1 and piece not in frequent
    )
    placed = {
        i: new for new, (least, i) in zip(missing[room:], weakest, strict=False) if new[1] > least
    }
    kept = [placed.get(i, (piece, score)) for i, (piece, score) in enumerate(pieces)]
    return kept + missing[:room]


def _normalizer(options: TrainingOptions) -> normalizers.Normalizer:
    clean = normalizer(
        lowercase=options.lowercase,
        strip_accents=False if options.keep_accents else None,
        handle_chinese_chars=options.model == "wordpiece",
    )
    return (
        normalizers.Sequence([normalizers.NFKC(), clean]) if options.model == "unigram" else clean
    )


def _pre_tokenizer(
    options: TrainingOptions, alphabet: list[str] | None
) -> pre_tokenizers.PreTokenizer:
    if options.model == "wordpiece":
        return pre_tokenizer(alphabet)
    if options.model == "bpe":
        # A text's first word has the same tokens as anywhere else.
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(" ", prepend_scheme="always", split=False),
                pre_tokenizers.Split(_BYTE_LEVEL_WORDS, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])


def _alphabet(
    characters: np.ndarray, normalize: normalizers.Normalizer, options: TrainingOptions
) -> list[str]:
    """The most frequent characters after normalization, sorted by code point.

    Without `options.alphabet` it takes about as many as BERT has. If these miss more than _MOST_MISSED of
    the text, as in Chinese or Korean, it takes as many as half of the vocabulary has room for,
    until they miss _MISSED_BY_LARGER. A character that can continue a word takes two entries of
    WordPiece, an ideograph one: it stands alone.
    """

    def entries(character: str) -> int:
        return 1 + (options.model == "wordpiece" and _continues(character))

    counts: dict[str, int] = {}
    for code_point in np.flatnonzero(characters):
        for part in normalize.normalize_str(chr(code_point)):
            if not part.isspace():
                counts[part] = counts.get(part, 0) + int(characters[code_point])
    by_count = sorted(counts, key=lambda character: (-counts[character], character))
    size = options.alphabet
    if size is None:
        size = min(_USUAL_CHARACTERS, max(60, options.vocab_size // 10))
        total = sum(counts.values())
        missed = sum(counts[character] for character in by_count[size:])
        if missed > _MOST_MISSED * total:
            taken = sum(map(entries, by_count[:size]))
            for character in by_count[size:]:
                taken += entries(character)
                if missed <= _MISSED_BY_LARGER * total or 2 * taken > options.vocab_size:
                    break
                missed -= counts[character]
                size += 1
    return sorted(by_count[:size])


def _strange(
    characters: np.ndarray, normalize: normalizers.Normalizer, alphabet: list[str]
) -> dict[int, str]:
    """The characters of the text that aren't in the alphabet -> a blank."""
    known = {*alphabet, " "}
    return {
        int(code_point): " "
        for code_point in np.flatnonzero(characters)
        if not known.issuperset(normalize.normalize_str(chr(code_point)))
    }


def _count_words(
    texts: Iterable[str],
    words: Counter[str],
    normalize: normalizers.Normalizer,
    pre_tokenize: pre_tokenizers.PreTokenizer,
    stride: int,
) -> Iterator[str]:
    """Yields the texts, and counts the words of every `stride`th text into `words`.

    The tokenizer in training is locked while it asks for texts, so none of its parts is used here.
    """
    for number, text in enumerate(texts):
        if number % stride == 0:
            pieces = pre_tokenize.pre_tokenize_str(normalize.normalize_str(text))
            words.update(word for word, _ in pieces)
        yield text


def _check_frequent_words(
    words: Counter[str], alphabet: list[str] | None, trained: TextTokenizer
) -> None:
    known = None if alphabet is None else {*alphabet, "\u2581"}
    least = _LEAST_SHARE * sum(len(word) * count for word, count in words.items())
    missing = [
        word
        for word, count in words.most_common(_CHECKED_WORDS)
        if count * len(word) >= least
        and len(word) <= _SHORT_WORD
        and word not in trained.vocabulary
        and (known is None or known.issuperset(word))
    ]
    if missing:
        raise DataError(
            f"--vocab-size: the trained vocabulary lacks {', '.join(map(repr, missing[:5]))}, among "
            "the most frequent words of the text: its trainer has failed, as by counts that overflow; "
            "prepare a part of the text and give its store as --tokenizer"
        )


def _continues(character: str) -> bool:
    """Whether a word may continue with `character`; it ends before punctuation and ideographs."""
    spaced = _SPACED.normalize_str(f"a{character}")
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(spaced)) == 1
