"""Text of a made-up language, for tests that prepare a token store of their own."""

from __future__ import annotations

import random
from pathlib import Path


def write_text(path: Path, documents: int = 120, seed: int = 0) -> None:
    """Sentences of a made-up language, several to a document."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(200)]
    with path.open("w") as file:
        for _ in range(documents):
            for _ in range(draw.randint(2, 4)):
                sentences = [
                    " ".join(draw.choices(words, k=draw.randint(4, 14))).capitalize() + "."
                    for _ in range(draw.randint(2, 6))
                ]
                file.write(" ".join(sentences) + "\n")
            file.write("\n")
