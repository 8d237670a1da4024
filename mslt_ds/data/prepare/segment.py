"""Sentence segmentation by sentencex: rules and abbreviations for a language, no model."""

from __future__ import annotations

from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue] (compiled)

LANGUAGE = "en"


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph in order; none is blank."""
    return [piece for piece in segment(LANGUAGE, paragraph) if not piece.isspace()]
