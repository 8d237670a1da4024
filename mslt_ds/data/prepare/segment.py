"""Sentence segmentation by sentencex: rules and abbreviations for a language, no model.

It knows the marks that end a sentence in any script (`。`, `؟`, `।`, `።`); the language decides about
abbreviations and quotation marks. Thai and Lao have no such mark and write a blank between clauses or
sentences: there the blanks end them.
"""

from __future__ import annotations

import re

from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue] (compiled)

from mslt_ds.errors import DataError

DEFAULT_LANGUAGE = "en"
_CODE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*")
_BLANKS_END = ("th", "lo")
_BETWEEN_CLAUSES = re.compile("(?<=[\u0e00-\u0eff])\\s+(?=[\u0e00-\u0eff])")


def check_language(language: str) -> None:
    """DataError unless `language` is written as a language's code."""
    if not _CODE.fullmatch(language):
        raise DataError(
            f"--language: {language!r}; expected a code of two or three small letters, such as en, de or zh"
        )


def sentences(paragraph: str, language: str = DEFAULT_LANGUAGE) -> list[str]:
    """The sentences of a paragraph in order, without blanks around them; none is blank."""
    found = segment(language, paragraph)
    if language in _BLANKS_END:
        found = [clause for piece in found for clause in _BETWEEN_CLAUSES.split(piece)]
    return [stripped for piece in found if (stripped := piece.strip())]
