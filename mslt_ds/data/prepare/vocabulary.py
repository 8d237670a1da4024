"""The tokenizer of a store: trained on its text, and saved so that `AutoTokenizer` loads it.

Equal text gives an equal vocabulary. The trainer of `tokenizers` alone doesn't ensure this: it
numbers the pieces `##x` in the order of a hash table and breaks ties between merges by these
numbers. Here it is given all characters and all continuing characters in sorted order beforehand,
so that nothing depends on that table.

A trained vocabulary must hold the most frequent words: a trainer's counts have overflowed on large
inputs before, and lost "the" (huggingface/tokenizers, issue 437).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.trainers import WordPieceTrainer

from mslt_ds.data.tokenizer import (
    CONTINUES,
    PROBE,
    SPECIAL,
    TOKENIZER_FILES,
    normalizer,
    pipeline,
    tokens_by_id,
)
from mslt_ds.errors import DataError

LEAST_VOCAB_SIZE = 200
LEAST_ALPHABET = 30
_USUAL_CHARACTERS = 1000  # about as many as BERT's own vocabulary has
# The usual alphabet may miss this share of the text. A larger one is chosen to miss almost nothing.
_MOST_MISSED, _MISSED_BY_LARGER = 1e-4, 1e-6
_MOST_TRAINING_BYTES = 1 << 30
# A vocabulary of this size has room for the most frequent words of any text.
_ROOM_FOR_WORDS = 5000
_CHECKED_WORDS = 100
_SPACED = normalizer(lowercase=False)
_CHECKED_CHARACTERS = 4_000_000


def train(
    texts: Iterable[str],
    characters: np.ndarray,
    vocab_size: int,
    *,
    lowercase: bool,
    alphabet_size: int | None = None,
) -> Tokenizer:
    """A WordPiece tokenizer of at most `vocab_size` tokens. It depends on the arguments alone.

    characters: how often each code point occurs in the texts, (0x110000,) int64
    alphabet_size: the largest number of characters to keep; None chooses one by the text, see `_alphabet`

    DataError if a vocabulary with room for them lacks some of the most frequent words.
    """
    normalize = normalizer(lowercase=lowercase)
    alphabet = _alphabet(characters, normalize, vocab_size, alphabet_size)
    continuing = [f"{CONTINUES}{character}" for character in alphabet if _continues(character)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *alphabet, *continuing],
        # Words are stripped of characters that aren't in the alphabet.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    words: Counter[str] = Counter()
    stride = int(characters.sum()) // _CHECKED_CHARACTERS + 1
    learner = pipeline({}, lowercase=lowercase)
    learner.train_from_iterator(_count_words(texts, words, normalize, stride), trainer)
    # The characters were special tokens only for the trainer; take the vocabulary alone.
    trained = pipeline(learner.get_vocab(with_added_tokens=True), lowercase=lowercase)
    if vocab_size >= _ROOM_FOR_WORDS:
        _check_frequent_words(words, alphabet, trained)
    return trained


def sampling_stride(text_bytes: int) -> int:
    """n, where the vocabulary of a text of this size is trained on every nth document."""
    return -(-text_bytes // _MOST_TRAINING_BYTES)


def save(tokenizer: Tokenizer, folder: Path, loaded_from: Path | None) -> None:
    """Write a folder that `AutoTokenizer` loads; DataError if it loads another tokenizer from it.

    The folder appears whole. If another process has written it meanwhile, that one's folder stays.

    loaded_from: the folder or file that the tokenizer was loaded from; further files of a folder are
        copied, except for its vocab.txt: the ids come from `tokenizer` alone
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
        for name in TOKENIZER_FILES:
            if name != "vocab.txt" and (loaded_from / name).is_file():
                shutil.copyfile(loaded_from / name, folder / name)
    tokenizer.save(str(folder / "tokenizer.json"))
    config_path = folder / "tokenizer_config.json"
    if not config_path.exists():
        config_path.write_text(json.dumps(_config(tokenizer), indent=1) + "\n", encoding="utf-8")
    tokens = tokens_by_id(tokenizer)
    lines = "".join(f"{token}\n" for token, _ in tokens)
    # A line's number is the token's id, so a vocabulary with gaps has no such file.
    if tokens[-1][1] + 1 == len(tokens) == lines.count("\n"):
        (folder / "vocab.txt").write_text(lines, encoding="utf-8")


def _check_saved(tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer  # takes seconds

    from mslt_ds.hugging_face import LOAD

    try:
        loaded = AutoTokenizer.from_pretrained(folder, **LOAD)
    except Exception as error:  # transformers raises any kind for a configuration it can't use
        raise DataError(f"--tokenizer: AutoTokenizer can't load it ({error})") from error
    expected = tokenizer.encode(PROBE, add_special_tokens=False).ids
    found = loaded(PROBE, add_special_tokens=False)["input_ids"]
    added = sorted(loaded.get_vocab().keys() - tokenizer.get_vocab().keys())
    if added and (file := _file_that_adds(folder, added[0])):
        raise DataError(
            f"--tokenizer: {file} adds {added[0]!r}, of {len(added)} tokens that the vocabulary, with which "
            f"the text would be prepared, lacks; remove them from {file}, or add them to the vocabulary"
        )
    if loaded.get_vocab() != tokenizer.get_vocab() or found != expected:
        raise DataError(
            f"--tokenizer: AutoTokenizer makes another tokenizer of it ({len(loaded)} tokens) than "
            f"the text would be prepared with ({tokenizer.get_vocab_size()} tokens); its "
            "tokenizer_config.json contradicts its tokenizer.json or vocab.txt"
        )


def _file_that_adds(folder: Path, token: str) -> str | None:
    """The name of the first settings file that holds `token`; None if none does."""
    names = ("added_tokens.json", "special_tokens_map.json")
    quoted = (json.dumps(token), json.dumps(token, ensure_ascii=False))
    for name in names:
        path = folder / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if any(form in text for form in quoted):
            return name
    return None


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    settings = json.loads(tokenizer.to_str())["normalizer"] or {}
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": settings.get("lowercase", False),
        **{f"{name}_token": token for name, token in SPECIAL.items()},
    }


def _alphabet(
    characters: np.ndarray,
    normalize: normalizers.BertNormalizer,
    vocab_size: int,
    size: int | None,
) -> list[str]:
    """The most frequent characters after normalization, sorted by code point.

    size: how many at most. None takes about as many as BERT has. If these miss more than _MOST_MISSED of
        the text, as in Chinese or Korean, it takes as many as half of the vocabulary has room for,
        until they miss _MISSED_BY_LARGER. A character that can continue a word takes two entries, an
        ideograph one: it stands alone.
    """
    counts: dict[str, int] = {}
    for code_point in np.flatnonzero(characters):
        for part in normalize.normalize_str(chr(code_point)):
            if not part.isspace():
                counts[part] = counts.get(part, 0) + int(characters[code_point])
    by_count = sorted(counts, key=lambda character: (-counts[character], character))
    if size is None:
        size = min(_USUAL_CHARACTERS, max(60, vocab_size // 10))
        total = sum(counts.values())
        missed = sum(counts[character] for character in by_count[size:])
        if missed > _MOST_MISSED * total:
            entries = sum(map(_entries, by_count[:size]))
            for character in by_count[size:]:
                entries += _entries(character)
                if missed <= _MISSED_BY_LARGER * total or 2 * entries > vocab_size:
                    break
                missed -= counts[character]
                size += 1
    return sorted(by_count[:size])


def _entries(character: str) -> int:
    """How many entries of a vocabulary a character takes."""
    return 1 + _continues(character)


def _count_words(
    texts: Iterable[str],
    words: Counter[str],
    normalize: normalizers.BertNormalizer,
    stride: int,
) -> Iterator[str]:
    """Yields the texts, and counts the words of every `stride`th text into `words`.

    The tokenizer in training is locked while it asks for texts, so none of its parts is used here.
    """
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    for number, text in enumerate(texts):
        if number % stride == 0:
            pieces = pre_tokenizer.pre_tokenize_str(normalize.normalize_str(text))
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
    """Whether a word may continue with `character`; it ends before punctuation and ideographs."""
    spaced = _SPACED.normalize_str(f"a{character}")
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(spaced)) == 1
