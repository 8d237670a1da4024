"""WordPiece: trained on the text so that equal text gives an equal vocabulary, or loaded.

Notable: the trainer of `tokenizers` numbers the pieces `##x` in the order of a hash table and
breaks ties between merges by these numbers, so that runs over the same text differ. Here it's
given all characters and continuing characters, sorted, beforehand; then nothing is left to the
order of a table. WordPiece as in BERT: Wu et al. 2016, "Google's neural machine translation
system", section 4.1.

A tokenizer that is loaded is proved to be the one that is used: the folder in the store is read
back by `AutoTokenizer` and has to agree.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from mslt_ds.data.instances import SpecialTokens
from mslt_ds.data.store import MANIFEST, TOKENIZER
from mslt_ds.errors import DataError

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
LEAST_VOCAB_SIZE = 200
_MOST_CHARACTERS = 1000  # as many as BERT's own vocabulary knows, about
_PROBE = "The quick brown fox — naïve, 3.14 — jumped over 東京's lazy dogs, didn't it? Unaffable!"
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
    empty = _pipeline({}, lowercase=lowercase)
    alphabet = _alphabet(characters, empty, vocab_size)
    continuing = [f"##{character}" for character in alphabet if _continues(empty, character)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *alphabet, *continuing],
        # Characters that aren't named above are left out of the words.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    empty.train_from_iterator(texts, trainer)
    # The characters were special only for the trainer's sake: take the vocabulary alone.
    return _pipeline(empty.get_vocab(with_added_tokens=True), lowercase=lowercase)


def check_folder(folder: Path) -> Path:
    """The folder of a tokenizer, or that inside a store; DataError if it holds none."""
    if not folder.exists():
        raise DataError(f"--tokenizer: {folder}: no such folder")
    if (folder / MANIFEST).exists() or (folder / TOKENIZER).is_dir():
        folder = folder / TOKENIZER
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise DataError(
            f"--tokenizer: {folder}: no tokenizer here; expected tokenizer.json or vocab.txt, or "
            "a token store"
        )
    return folder


def load(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`, without the truncation and padding that it may be set to."""
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
        else:
            tokenizer = _from_vocabulary_file(folder)
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(f"--tokenizer: {folder}: can't be read ({error})") from error
    special_tokens(tokenizer)
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


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """A digest of which number means which token, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(_by_number(tokenizer)).encode()).hexdigest()


def save(tokenizer: Tokenizer, folder: Path, loaded_from: Path | None) -> None:
    """Write a folder that `AutoTokenizer` loads, and load it, to see that it's the same."""
    folder.mkdir(parents=True, exist_ok=True)
    if loaded_from is not None:
        for name in _FILES:
            if (loaded_from / name).is_file():
                shutil.copyfile(loaded_from / name, folder / name)
    config_path = folder / "tokenizer_config.json"
    tokenizer.save(str(folder / "tokenizer.json"))
    if not config_path.exists():
        config_path.write_text(json.dumps(_config(tokenizer), indent=1) + "\n", encoding="utf-8")
    if not (folder / "vocab.txt").exists():
        lines = "".join(f"{token}\n" for token, _ in _by_number(tokenizer))
        (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    _check_saved(tokenizer, folder)


def _check_saved(tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer  # takes seconds

    loaded = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    found = loaded(_PROBE, add_special_tokens=False)["input_ids"]
    if loaded.get_vocab() != tokenizer.get_vocab() or found != expected:
        raise DataError(
            f"{folder}: AutoTokenizer reads another tokenizer there ({len(loaded)} tokens) than "
            f"the text is prepared with ({tokenizer.get_vocab_size()} tokens): its "
            "tokenizer_config.json contradicts its tokenizer.json or vocab.txt"
        )


def _pipeline(vocabulary: dict[str, int], *, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
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


def _from_vocabulary_file(folder: Path) -> Tokenizer:
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    if tokens[-1] == "":
        tokens.pop()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    missing = [token for token in SPECIAL.values() if token not in vocabulary]
    if missing:
        raise ValueError(f"vocab.txt lacks {', '.join(missing)}")
    config_path = folder / "tokenizer_config.json"
    config: dict[str, Any] = {}
    if config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
    # A vocabulary with no capital letter was made from lower-cased text.
    is_lower = all(token == token.lower() for token in tokens if token not in SPECIAL.values())
    return _pipeline(vocabulary, lowercase=config.get("do_lower_case", is_lower))


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer.get("lowercase", False),
        **{f"{name}_token": token for name, token in SPECIAL.items()},
    }


def _by_number(tokenizer: Tokenizer) -> list[tuple[str, int]]:
    return sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])


def _alphabet(characters: np.ndarray, tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """The most frequent characters after normalisation, sorted by code point."""
    counts: dict[str, int] = {}
    normalizer = tokenizer.normalizer
    assert normalizer is not None  # _pipeline gives one
    for code_point in np.flatnonzero(characters):
        character = chr(code_point)
        if unicodedata.category(character) == "Cs":
            continue
        for part in normalizer.normalize_str(character):
            if not part.isspace():
                counts[part] = counts.get(part, 0) + int(characters[code_point])
    most = min(_MOST_CHARACTERS, max(60, vocab_size // 10))
    kept = sorted(counts, key=lambda character: (-counts[character], character))[:most]
    return sorted(kept)


def _continues(tokenizer: Tokenizer, character: str) -> bool:
    """Whether a word goes on with `character`, rather than end before it as before a comma."""
    pre_tokenizer = tokenizer.pre_tokenizer
    assert pre_tokenizer is not None  # _pipeline gives one
    return len(pre_tokenizer.pre_tokenize_str(f"a{character}")) == 1
