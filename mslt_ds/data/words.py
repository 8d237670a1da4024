"""Which tokens go on with a word, for masking that keeps words whole."""

from __future__ import annotations

import numpy as np

from mslt_ds.data import tokenizer
from mslt_ds.data.store import TokenStore


def continuing_tokens(store: TokenStore) -> np.ndarray:
    """Whether a token is a further piece of the word before it, (vocab_size,) bool."""
    continues = np.zeros(store.vocab_size, np.bool_)
    for token, number in tokenizer.load(store.tokenizer_dir).get_vocab().items():
        continues[number] = token.startswith(tokenizer.CONTINUES)
    return continues
