"""Tokens that continue a word, for masking of whole words."""

from __future__ import annotations

import numpy as np

from mslt_ds.data import tokenizer
from mslt_ds.data.store import TokenStore


def continuing_tokens(store: TokenStore) -> np.ndarray:
    """For each token id, whether it continues the word before it, (vocab_size,) bool."""
    continues = np.zeros(store.vocab_size, np.bool_)
    for token, number in tokenizer.load(store.tokenizer_dir).get_vocab().items():
        continues[number] = token.startswith(tokenizer.CONTINUES)
    return continues
