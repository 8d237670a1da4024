"""Tokens that continue a word, for masking of whole words."""

from __future__ import annotations

import numpy as np

from mslt_ds.data import tokenizer
from mslt_ds.data.store import TokenStore


def continuing_tokens(store: TokenStore) -> np.ndarray:
    """For each token id, whether it continues the word before it, (vocab_size,) bool."""
    return tokenizer.load(store.tokenizer_dir).continuing_tokens()
