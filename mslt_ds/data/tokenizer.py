"""WordPiece: trained on the text so that equal text gives an equal vocabulary, or loaded.

Notable: the trainer of `tokenizers` numbers the pieces `##x` in the order of a hash table and
breaks ties between merges by these numbers, so that runs over the same text differ. Here it's
given all characters and continuing characters, sorted, beforehand; then nothing is left to the
order of a table. WordPiece as in BERT: Wu et al. 2016, "Google's neural machine translation
system", section 4.1.

A trained vocabulary must hold the most frequent words: counts of a trainer have overflowed on
large inputs before, and lost "the" (huggingface/tokenizers, issue 437). A tokenizer that is loaded is
proved to be the one that is used: it has to find its own words, and the folder in the store is read
back by `AutoTokenizer` and has to agree.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from mslt_ds.data.store import MANIFEST, TOKENIZER, SpecialTokens
from mslt_ds.errors import DataError

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
LEAST_VOCAB_SIZE = 200
_MOST_CHARACTERS = 1000  # as many as BERT's own vocabulary knows, about
_MOST_TRAINING_BYTES = 1 << 30
# A vocabulary of this size has room for the most frequent words whatever the text.
_ROOM_FOR_WORDS = 5000
_CHECKED_WORDS = 100
_CHECKED_CHARACTERS = 4_000_000
PROBE = "The quick brown fox — naïve, 3.14 — jumped over 東京's lazy dogs, didn't it? Unaffable!"
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def train(
    texts: Iterable[str], characters: np.ndarray, vocab_size: int, *, lowercase: bool
) -> Tokenizer:
    """A WordPiece tokenizer of at most `vocab_size` tokens, a function of its arguments alone.

    characters: how often each code point occurs in the texts, (0x110000,) int64
    """
    normalizer = _normalizer(lowercase=lowercase)
    alphabet = _alphabet(characters, normalizer, vocab_size)
    continuing = [f"##{character}" for character in alphabet if _continues(character)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *alphabet, *continuing],
        # Characters that aren't named above are left out of the words.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    words: Counter[str] = Counter()
    stride = int(characters.sum()) // _CHECKED_CHARACTERS + 1
    learner = _pipeline({}, lowercase=lowercase)
    learner.train_from_iterator(_count_words(texts, words, normalizer, stride), trainer)
    # The characters were special only for the trainer's sake: take the vocabulary alone.
    trained = _pipeline(learner.get_vocab(with_added_tokens=True), lowercase=lowercase)
    if vocab_size >= _ROOM_FOR_WORDS:
        _check_frequent_words(words, alphabet, trained)
    return trained


def sampling_stride(text_bytes: int) -> int:
    """Of a text of this size, every how-manieth document to train on."""
    return -(-text_bytes // _MOST_TRAINING_BYTES)


def find(place: Path) -> Path:
    """Where a tokenizer lies: a folder of its own or inside a store, or a vocabulary file;
    DataError if there is none."""
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
    """The tokenizer at `place`, a folder or a vocabulary file (one token a line, or a
    tokenizer.json), without the truncation and padding that it may be set to.

    Its vocabulary is proved to be in use: DataError if it doesn't find its own words.
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
    _check_words(tokenizer, place)
    return tokenizer


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
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
    """One above the highest token number."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """A digest of which number means which token, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(_by_number(tokenizer)).encode()).hexdigest()


def save(tokenizer: Tokenizer, folder: Path, loaded_from: Path | None) -> None:
    """Write a folder that `AutoTokenizer` loads, and load it, to see that it's the same.

    The folder appears whole; if another process was faster, its folder stays.
    """
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(tokenizer, partial, loaded_from)
        _check_saved(tokenizer, partial)
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial)
        if not (isinstance(error, OSError) and folder.exists()):
            raise


def _write(tokenizer: Tokenizer, folder: Path, loaded_from: Path | None) -> None:
    if loaded_from is not None and loaded_from.is_dir():
        for name in _FILES:
            if (loaded_from / name).is_file():
                shutil.copyfile(loaded_from / name, folder / name)
    tokenizer.save(str(folder / "tokenizer.json"))
    config_path = folder / "tokenizer_config.json"
    if not config_path.exists():
        config_path.write_text(json.dumps(_config(tokenizer), indent=1) + "\n", encoding="utf-8")
    if not (folder / "vocab.txt").exists():
        lines = "".join(f"{token}\n" for token, _ in _by_number(tokenizer))
        (folder / "vocab.txt").write_text(lines, encoding="utf-8")


def _check_words(tokenizer: Tokenizer, place: Path) -> None:
    """A tokenizer that cuts in another way than its vocabulary was made for knows few words."""
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
            f"{lost[0]!r}, become {SPECIAL['unk']}: it doesn't use its vocabulary; check that "
            "do_lower_case in its tokenizer_config.json, or the normalizer in its tokenizer.json, is "
            "right"
        )


def _check_saved(tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer  # takes seconds

    try:
        loaded = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever transformers makes of a configuration it doesn't like
        raise DataError(f"--tokenizer: AutoTokenizer can't load it ({error})") from error
    expected = tokenizer.encode(PROBE, add_special_tokens=False).ids
    found = loaded(PROBE, add_special_tokens=False)["input_ids"]
    if loaded.get_vocab() != tokenizer.get_vocab() or found != expected:
        raise DataError(
            f"--tokenizer: AutoTokenizer makes another tokenizer of it ({len(loaded)} tokens) than "
            f"the text would be prepared with ({tokenizer.get_vocab_size()} tokens); its "
            "tokenizer_config.json contradicts its tokenizer.json or vocab.txt"
        )


def _normalizer(
    *,
    lowercase: bool,
    strip_accents: bool | None = None,  # None: when lower-casing, as the original does
    handle_chinese_chars: bool = True,
) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=strip_accents,
        handle_chinese_chars=handle_chinese_chars,
    )


def _pipeline(
    vocabulary: dict[str, int],
    *,
    lowercase: bool,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk"]))
    tokenizer.normalizer = _normalizer(
        lowercase=lowercase,
        strip_accents=strip_accents,
        handle_chinese_chars=handle_chinese_chars,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
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
    tokens = file.read_text(encoding="utf-8").split("\n")
    if tokens[-1] == "":
        tokens.pop()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    missing = [token for token in SPECIAL.values() if token not in vocabulary]
    if missing:
        raise ValueError(f"{file.name} lacks {', '.join(missing)}")
    config_path = file.with_name("tokenizer_config.json")
    config: dict[str, Any] = {}
    if config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
    # A vocabulary with no capital letter was made from lower-cased text.
    names = {*SPECIAL.values(), *(token for token in tokens if token.startswith("[unused"))}
    is_lower = all(token == token.lower() for token in tokens if token not in names)
    return _pipeline(
        vocabulary,
        lowercase=config.get("do_lower_case", is_lower),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer.get("lowercase", False),
        **{f"{name}_token": token for name, token in SPECIAL.items()},
    }


def _by_number(tokenizer: Tokenizer) -> list[tuple[str, int]]:
    return sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])


def _alphabet(
    characters: np.ndarray, normalizer: normalizers.BertNormalizer, vocab_size: int
) -> list[str]:
    """The most frequent characters after normalisation, sorted by code point."""
    counts: dict[str, int] = {}
    for code_point in np.flatnonzero(characters):
        for part in normalizer.normalize_str(chr(code_point)):
            if not part.isspace():
                counts[part] = counts.get(part, 0) + int(characters[code_point])
    most = min(_MOST_CHARACTERS, max(60, vocab_size // 10))
    kept = sorted(counts, key=lambda character: (-counts[character], character))[:most]
    return sorted(kept)


def _count_words(
    texts: Iterable[str],
    words: Counter[str],
    normalizer: normalizers.BertNormalizer,
    stride: int,
) -> Iterator[str]:
    """The texts; on the way, the words of every `stride`th are counted into `words`.

    The tokenizer in training is locked while it asks for texts, so none of its parts is used here.
    """
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    for number, text in enumerate(texts):
        if number % stride == 0:
            pieces = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
            words.update(word for word, _ in pieces)
        yield text


def _check_frequent_words(words: Counter[str], alphabet: list[str], trained: Tokenizer) -> None:
    vocabulary = trained.get_vocab()
    known = set(alphabet)
    missing = [
        word
        for word, count in words.most_common(_CHECKED_WORDS)
        if count > 1 and word not in vocabulary and known.issuperset(word)
    ]
    if missing:
        raise DataError(
            f"--vocab-size: the trained vocabulary lacks {', '.join(map(repr, missing[:5]))}, among "
            "the most frequent words of the text: the trainer's counts must have overflowed; "
            "prepare a part of the text and give its store as --tokenizer"
        )


def _continues(character: str) -> bool:
    """Whether a word goes on with `character`, rather than end before it as before a comma."""
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(f"a{character}")) == 1
