"""README.md of a model folder: written by the program until a user edits it, and the user's from then on.

The last line of a card that the program wrote holds the digest of the lines above. A card whose digest
doesn't fit was edited, and one without that line was never the program's: both are kept.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mslt_ds.atomic import replace_text

CARD_FILE = "README.md"
_SEAL = "<!-- mslt-ds replaces this file as long as it isn't edited: {} -->\n"
_SEALED = re.compile(r"(.*\n)" + _SEAL.format(r"([0-9a-f]{16})").replace(".", r"\."), re.DOTALL)


def seal(text: str) -> str:
    """`text`, which ends with a line break, with its digest in a comment below."""
    return text + _SEAL.format(_digest(text))


def is_ours(card: str) -> bool:
    """Whether the program wrote `card` and nobody has edited it."""
    found = _SEALED.fullmatch(card)
    return found is not None and _digest(found[1]) == found[2]


def write_card(folder: Path, text: str) -> bool:
    """Write a model folder's card unless the one that is there is the user's; whether it was written."""
    path = folder / CARD_FILE
    if path.exists() and not is_ours(path.read_text(encoding="utf-8", errors="replace")):
        return False
    replace_text(path, seal(text))
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
