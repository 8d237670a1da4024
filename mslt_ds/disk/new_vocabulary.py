"""A new vocabulary in a model that exists: which rows of the old one each of its tokens begins with.

A token of both vocabularies keeps its vector. Tokens are the same if they are the same text and both begin
a word or both continue one, however their tokenizers mark that; special tokens are the same if they have the
same role. A new token begins as the mean of the vectors of the pieces that the old tokenizer makes of its text (as
in Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression", arXiv 2402.09977), and one
without pieces as the mean of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mslt_ds.data.tokenizer import TextTokenizer, spell_out
from mslt_ds.data.word_starts import text_of, word_marks

Rows = Sequence[Sequence[int]]
"""For each token id of the new vocabulary, ids of the old one; [] where there are none."""


def old_rows(old: TextTokenizer, new: TextTokenizer) -> Rows:
    """What each token of the `new` vocabulary begins with. `old` takes special tokens for text afterwards."""
    rows: list[list[int]] = [[] for _ in range(new.vocab_size)]
    by_text = {key: number for number, key in _texts(old).items()}
    by_role = {
        new.vocabulary[token]: old.vocabulary[old.special[role]]
        for role, token in new.special.items()
        if role in old.special and old.special[role] not in old.added
    }
    blank = word_marks(old.backend).begins == " "  # as it stands before a word in the text
    spell_out(old.backend)
    apart: dict[int, str] = {}
    for number, (continues, text) in _texts(new).items():
        if number not in by_role:
            if (shared := by_text.get((continues, text))) is not None:
                rows[number] = [shared]
            elif not text.startswith("\0"):
                apart[number] = f" {text}" if blank and not continues else text
    encodings = old.backend.encode_batch_fast(list(apart.values()), add_special_tokens=False)
    for number, encoding in zip(apart, encodings, strict=True):
        rows[number] = [piece for piece in encoding.ids if piece != old.unknown_id]
    for number, row in by_role.items():
        rows[number] = [row]
    return rows


def _texts(tokenizer: TextTokenizer) -> dict[int, tuple[bool, str]]:
    """Token id -> (whether it continues a word, its text). A token that isn't whole characters has its own name
    for a text, behind a character that no text has."""
    marks, continues = word_marks(tokenizer.backend), tokenizer.continuing_tokens()
    return {
        number: (bool(continues[number]), text_of(token, marks, begins_word=False) or f"\0{token}")
        for token, number in tokenizer.vocabulary.items()
    }


def take(tensor: Tensor, rows: Rows, size: int) -> Tensor:
    """The mean of the `rows` of `tensor` for each token, and of all its rows where a token has none.

    tensor: (old vocabulary, ...) -> (size, ...); those behind the last token have no rows
    """
    flat = tensor.reshape(len(tensor), -1)
    begins = [0, *accumulate(len(row) for row in rows)][: len(rows)]
    means = torch.nn.functional.embedding_bag(
        torch.tensor([piece for row in rows for piece in row], dtype=torch.int64),
        flat,
        torch.tensor(begins, dtype=torch.int64),
        mode="mean",
    )
    found = flat.mean(0).expand(size, -1).clone()
    has_rows = torch.tensor([bool(row) for row in rows])
    found[: len(rows)][has_rows] = means[has_rows]
    return found.reshape(size, *tensor.shape[1:])
