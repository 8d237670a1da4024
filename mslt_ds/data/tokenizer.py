"""WordPiece tokenizers: found on disk, loaded, and checked to be BERT's.

WordPiece is that of BERT: Wu et al. 2016, "Google's neural machine translation system", section 4.1.
A tokenizer that is loaded has to find the words of its own vocabulary: loaders have been known to
ignore a vocabulary without an error.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mslt_ds.data.store import MANIFEST, TOKENIZER, SpecialTokens
from mslt_ds.errors import DataError

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONTINUES = "##"
"""The beginning of a token that continues a word."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip
"""All files that `AutoTokenizer` may read. They are named one by one because a tokenizer's folder may
hold a token store or a model as well. Their order is part of an evaluation's fingerprint."""
PROBE = "The quick brown fox — naïve, 3.14 — jumped over 東京's lazy dogs, didn't it? Unaffable!"
"""A text on which tokenizers with different settings are likely to differ."""
_CHECKED_WORDS = 100


def find(place: Path) -> Path:
    """The tokenizer at `place`: a folder of its own or inside a token store, or a vocabulary file.

    DataError if there is none.
    """
    if not place.exists():
        raise DataError(f"--tokenizer: {place}: no such folder or file")
    if place.is_file():
        return place
    folder = place
    if (folder / MANIFEST).exists() or (folder / TOKENIZER).is_dir():
        folder = folder / TOKENIZER
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise DataError(
            f"--tokenizer: {folder}: no tokenizer here; expected tokenizer.json or vocab.txt, a "
            "token store, or a vocabulary file"
        )
    return folder


def load(place: Path) -> Tokenizer:
    """The tokenizer at `place`: a folder, a tokenizer.json, or a vocabulary file of one token a line.
    Truncation and padding are switched off.

    DataError if it can't be read, isn't BERT's, gives two tokens one id, or doesn't find the words of
    its own vocabulary.
    """
    file = place
    if place.is_dir():
        names = ("tokenizer.json", "vocab.txt")
        file = next((place / name for name in names if (place / name).is_file()), place / names[1])
    try:
        if file.suffix == ".json":
            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_truncation()
            tokenizer.no_padding()
        else:
            tokenizer = _from_vocabulary_file(file)
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(f"--tokenizer: {place}: can't be read ({error})") from error
    special_tokens(tokenizer)
    _check_ids(tokenizer, place)
    _check_words(tokenizer, place)
    return tokenizer


def load_for_text(place: Path) -> Tokenizer:
    """The tokenizer at `place` for the text of a store, in which special tokens that the text spells out
    are text, as in the original BERT: `[MASK]` becomes the pieces of a bracket, a word and a bracket.

    DataError if it can't be loaded or takes spelt-out special tokens for real ones all the same.
    """
    tokenizer = load(place)
    # It encodes them as text. tokenizer.json doesn't store this setting.
    tokenizer.encode_special_tokens = True
    for name, number in asdict(special_tokens(tokenizer)).items():
        if number in tokenizer.encode(f"a {SPECIAL[name]} b", add_special_tokens=False).ids:
            raise DataError(
                f"--tokenizer: {place}: {SPECIAL[name]} written in a text becomes the special token; "
                'in tokenizer.json, mark it "special": true under added_tokens and use the '
                "pre_tokenizer BertPreTokenizer"
            )
    return tokenizer


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Ids of BERT's special tokens; DataError if the vocabulary lacks one."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in SPECIAL.values() if token not in vocabulary]
    if missing:
        raise DataError(
            f"--tokenizer: its vocabulary of {tokenizer.get_vocab_size()} lacks "
            f"{', '.join(missing)}; it has to be a BERT tokenizer"
        )
    return SpecialTokens(
        **{name: vocabulary[SPECIAL[name]] for name in ("pad", "cls", "sep", "mask")}
    )


def vocab_size(tokenizer: Tokenizer) -> int:
    """The highest token id plus 1."""
    return max(tokenizer.get_vocab().values()) + 1


def tokens_by_id(tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """(token, id) of the whole vocabulary, by rising id."""
    return sorted(tokenizer.get_vocab().items(), key=lambda item: item[::-1])


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """A digest of the vocabulary with its ids, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(tokens_by_id(tokenizer)).encode()).hexdigest()


def normalizer(
    *,
    lowercase: bool,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
) -> normalizers.BertNormalizer:
    """BERT's normalizer. strip_accents: None strips them when lower-casing, as the original does."""
    return normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=strip_accents,
        handle_chinese_chars=handle_chinese_chars,
    )


def pipeline(vocabulary: dict[str, int], **options: Any) -> Tokenizer:
    """BERT's tokenizer with this vocabulary (token to id); an empty one is for training.

    options: of `normalizer`
    """
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk"]))
    tokenizer.normalizer = normalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    if vocabulary:
        cls, sep = SPECIAL["cls"], SPECIAL["sep"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
        )
        tokenizer.add_special_tokens(list(SPECIAL.values()))
    return tokenizer


def _from_vocabulary_file(file: Path) -> Tokenizer:
    vocabulary = _vocabulary_of_lines(file)
    config_path = file.with_name("tokenizer_config.json")
    config: dict[str, Any] = {}
    if config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
    # A vocabulary without capital letters was made from lower-cased text.
    names = {*SPECIAL.values(), *(token for token in vocabulary if token.startswith("[unused"))}
    is_lower = all(token == token.lower() for token in vocabulary if token not in names)
    return pipeline(
        vocabulary,
        lowercase=config.get("do_lower_case", is_lower),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )


def _vocabulary_of_lines(file: Path) -> dict[str, int]:
    """The tokens of a vocabulary file with their ids, which are their line numbers from 0.

    ValueError if a special token is missing, a token is on two lines, or a line before the last token is blank: loaders disagree
    about the ids of such a file.
    """
    # As in the original BERT, blanks around a token aren't part of it.
    lines = [line.strip(" \t") for line in file.read_text(encoding="utf-8-sig").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    missing = [token for token in SPECIAL.values() if token not in lines]
    if missing:
        raise ValueError(f"{file.name} lacks {', '.join(missing)}")
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(lines):
        if not token:
            raise ValueError(
                f"{file.name}: line {number + 1} is blank, and a token's id is the number of its line; "
                "if the model has an id for it, write [unusedN] there, with a new N; otherwise delete it"
            )
        if token in vocabulary:
            raise ValueError(
                f"{file.name}: {token!r} is on line {vocabulary[token] + 1} and again on line "
                f"{number + 1}, and a token's id is the number of its line; write [unusedN] on one of "
                "them, with a new N, so that all other ids stay"
            )
        vocabulary[token] = number
    return vocabulary


def _check_ids(tokenizer: Tokenizer, place: Path) -> None:
    """DataError if two tokens have the same id."""
    for (token, number), (other, next_number) in pairwise(tokens_by_id(tokenizer)):
        if number == next_number:
            raise DataError(
                f"--tokenizer: {place}: {token!r} and {other!r} both have the id {number}; give one of "
                "them an id of its own in tokenizer.json"
            )


def _check_words(tokenizer: Tokenizer, place: Path) -> None:
    """DataError if most words of the vocabulary become [UNK], as with a wrong normalizer."""
    vocabulary = tokenizer.get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    words = words[:: max(1, len(words) // _CHECKED_WORDS)]
    unknown = vocabulary[SPECIAL["unk"]]
    encodings = tokenizer.encode_batch_fast(words, add_special_tokens=False)
    lost = [
        word
        for word, encoding in zip(words, encodings, strict=True)
        if unknown in encoding.ids or not encoding.ids
    ]
    if len(lost) * 2 > len(words):
        raise DataError(
            f"--tokenizer: {place}: {len(lost)} of {len(words)} words of its own vocabulary, such as "
            f"{lost[0]!r}, become {SPECIAL['unk']}: it doesn't use its vocabulary; check "
            "do_lower_case in its tokenizer_config.json, or the normalizer in its tokenizer.json"
        )
