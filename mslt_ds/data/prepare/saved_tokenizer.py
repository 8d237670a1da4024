"""The tokenizer of a store, written so that `AutoTokenizer` loads it and gives the same ids."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mslt_ds.data.bert_tokenizer import LONGEST_WORD
from mslt_ds.data.tokenizer import PROBE, TOKENIZER_FILES, TextTokenizer
from mslt_ds.errors import DataError, failures_as

_PROBES = (
    PROBE,
    f"{'abc' * LONGEST_WORD} a\u2620b \u2620\u2620 \U0001f6b2x na\u0308ive \u00adsoft\u200bhyphen\ttab",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u05e9\u05dc\u05d5\u05dd! "
    "\u0645\u0631\u062d\u0628\u0627\u061f \u4eca\u65e5\u306f\u3001\u5929\u6c17\u3002 "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \uc548\ub155",
)
"""Texts on which tokenizers with different settings differ: long words, rare signs, many scripts."""


def save(tokenizer: TextTokenizer, folder: Path, loaded_from: Path | None) -> None:
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


def _write(tokenizer: TextTokenizer, folder: Path, loaded_from: Path | None) -> None:
    if loaded_from is not None and loaded_from.is_dir():
        for name in TOKENIZER_FILES:
            if name != "vocab.txt" and (loaded_from / name).is_file():
                shutil.copyfile(loaded_from / name, folder / name)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    config_path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = {
        # Any other class would make a tokenizer of its own kind, of the vocabulary alone.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    if config_path.exists():
        settings = json.loads(config_path.read_text(encoding="utf-8"))
        # The code that it names isn't copied.
        settings.pop("auto_map", None)
    roles = {f"{role}_token": token for role, token in tokenizer.special.items()}
    config_path.write_text(json.dumps(settings | roles, indent=1) + "\n", encoding="utf-8")
    tokens = tokenizer.tokens_by_id()
    lines = "".join(f"{token}\n" for token, _ in tokens)
    # A line's number is the token's id, so a vocabulary with gaps has no such file.
    if tokens[-1][1] + 1 == len(tokens) == lines.count("\n") and _is_wordpiece(tokenizer):
        (folder / "vocab.txt").write_text(lines, encoding="utf-8")


def _is_wordpiece(tokenizer: TextTokenizer) -> bool:
    return type(tokenizer.backend.model).__name__ == "WordPiece"


def _check_saved(tokenizer: TextTokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer  # takes seconds

    from mslt_ds.hugging_face import LOAD, quiet

    def failed(problem: str) -> DataError:
        return DataError(f"--tokenizer: AutoTokenizer can't load it ({problem})")

    with failures_as(failed), quiet():
        loaded = AutoTokenizer.from_pretrained(folder, **LOAD)
        found = [loaded(probe, add_special_tokens=False)["input_ids"] for probe in _PROBES]
    expected = [tokenizer.backend.encode(probe, add_special_tokens=False).ids for probe in _PROBES]
    vocabulary = loaded.get_vocab()
    added = sorted(vocabulary.keys() - tokenizer.vocabulary.keys())
    if added and (file := _file_that_adds(folder, added[0])):
        raise DataError(
            f"--tokenizer: {file} adds {added[0]!r}, of {len(added)} tokens that the vocabulary, with which "
            f"the text would be prepared, lacks; remove them from {file}, or add them to the vocabulary"
        )
    if vocabulary != tokenizer.vocabulary or found != expected:
        raise DataError(
            f"--tokenizer: AutoTokenizer makes another tokenizer of it ({len(loaded)} tokens) than "
            f"the text would be prepared with ({len(tokenizer.vocabulary)} tokens); its "
            "tokenizer_config.json contradicts its tokenizer.json or vocab.txt. If tokenizer.json is "
            'right, write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json'
        )


def _file_that_adds(folder: Path, token: str) -> str | None:
    """The name of the first settings file that holds `token`; None if none does."""
    names = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
    quoted = (json.dumps(token), json.dumps(token, ensure_ascii=False))
    for name in names:
        path = folder / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if any(form in text for form in quoted):
            return name
    return None
