"""WordPiece as BERT's tokenizer has it, from a vocabulary of any source.

Wu et al. 2016, "Google's neural machine translation system", section 4.1. BERT's own makes a whole word
unknown if one of its characters is, or if it has more than 100. With an alphabet given, an unknown
character costs one token and longer words are cut, by the pre-tokenizer alone: any program that reads
tokenizer.json gives the same ids, and all other words keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mslt_ds.json_object import read_object

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONTINUES = "##"
"""The beginning of a token that continues a word."""
LONGEST_WORD = 100  # characters; the search for its pieces takes quadratic time


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


def pre_tokenizer(alphabet: Sequence[str] | None) -> pre_tokenizers.PreTokenizer:
    """BERT's pre-tokenizer. alphabet: the known characters; None: words stay whole, as in the original"""
    words = pre_tokenizers.BertPreTokenizer()
    if alphabet is None:
        return words
    inner = "".join(one for one in alphabet if len(words.pre_tokenize_str(f"a{one}")) == 1)
    apart = rf"[^\s{_ranges(alphabet)}]"
    if inner:
        apart += rf"|[{_ranges(inner)}]{{{LONGEST_WORD}}}"
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(apart), "isolated"), words])


def pipeline(
    vocabulary: dict[str, int], *, alphabet: Sequence[str] | None = None, **options: Any
) -> Tokenizer:
    """BERT's tokenizer with this vocabulary (token to id); an empty one is for training.

    alphabet: see `pre_tokenizer`; options: of `normalizer`
    """
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk"]))
    tokenizer.normalizer = normalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizer(alphabet)
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    if vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL.values()))
        put_between(tokenizer, SPECIAL["cls"], SPECIAL["sep"])
    return tokenizer


def put_between(tokenizer: Tokenizer, cls: str, sep: str) -> None:
    """Let the tokenizer put a text between these tokens, and `sep` between and behind two texts."""
    ids = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((cls, sep))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=ids,
    )


def from_vocabulary_file(file: Path) -> Tokenizer:
    """BERT's tokenizer with the vocabulary of a file of one token a line.

    Its settings are those of a tokenizer_config.json beside it. ValueError if the file is ambiguous or
    lacks a special token.
    """
    vocabulary = _vocabulary_of_lines(file)
    name = "tokenizer_config.json"
    given = read_settings(file.with_name(name))
    config = {key: value for key, value in given.items() if value is not None}
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if not isinstance(config.get(key, False), bool):
            raise ValueError(f"{name}: {key}: {config[key]!r}; it has to be true or false")
    # A vocabulary without capital letters was made from lower-cased text.
    names = {*SPECIAL.values(), *(token for token in vocabulary if token.startswith("[unused"))}
    is_lower = all(token == token.lower() for token in vocabulary if token not in names)
    return pipeline(
        vocabulary,
        lowercase=config.get("do_lower_case", is_lower),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in the file, empty where there is none; ValueError names a file that holds no object."""
    try:
        return read_object(path) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path.name}: no JSON object: {error}") from None


def _vocabulary_of_lines(file: Path) -> dict[str, int]:
    """The tokens of a vocabulary file with their ids, which are their line numbers from 0.

    ValueError if a special token is missing, a token is on two lines, or a line before the last token is
    blank: loaders disagree about the ids of such a file.
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


def _ranges(characters: Iterable[str]) -> str:
    """The characters as the content of a regular expression's class."""
    ranges: list[list[int]] = []
    for code_point in sorted(map(ord, characters)):
        if ranges and code_point == ranges[-1][1] + 1:
            ranges[-1][1] = code_point
        else:
            ranges.append([code_point, code_point])
    return "".join(rf"\x{{{low:X}}}-\x{{{high:X}}}" for low, high in ranges)
