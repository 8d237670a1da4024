"""Answers from the start and end logits of windows: n-best lists, no-answer scores, predictions.

Source: Devlin et al. 2019, section 4.2 and 4.3. The score of a span is its start logit plus its end
logit. The score of no answer is the sum of the two logits at [CLS], the minimum over a question's
windows. A question gets no answer if this score exceeds that of the best span by more than a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mslt_ds.evaluation.squad.data import Question
from mslt_ds.evaluation.squad.features import Windows
from mslt_ds.evaluation.squad.recipe import SquadRecipe


@dataclass(frozen=True)
class Answers:
    """The answers, by question id.

    predictions: the answer, "" for none
    best_spans: the best span, whether or not no answer scores higher
    n_best: text, score and probability of the best spans; the probabilities add up to 1
    no_answer: the score of no answer minus that of the best span (2.0 only)
    """

    predictions: dict[str, str]
    best_spans: dict[str, str]
    n_best: dict[str, list[dict[str, Any]]]
    no_answer: dict[str, float]


def find_answers(
    questions: Sequence[Question],
    windows: Windows,
    logits: np.ndarray,
    recipe: SquadRecipe,
) -> Answers:
    """The answers to all questions.

    logits: (windows, longest, 2), start and end; positions after a window's tokens are ignored
    """
    spans: list[list[tuple[float, str]]] = [[] for _ in questions]
    nothing = [np.inf] * len(questions)
    for window, question in enumerate(windows.questions):
        start, end = logits[window, :, 0], logits[window, :, 1]
        nothing[question] = min(nothing[question], float(start[0] + end[0]))
        # A byte-level token may hold the blank before its word.
        spans[question] += [
            (score, questions[question].context[first:last].strip())
            for score, first, last in _best_spans(start, end, windows.offsets[window], recipe)
        ]
    answers = Answers({}, {}, {}, {})
    for question, found, null in zip(questions, spans, nothing, strict=True):
        _choose(question.id, found, null, recipe, answers)
    return answers


def _best_spans(
    start: np.ndarray,
    end: np.ndarray,
    offsets: list[tuple[int, int] | None],
    recipe: SquadRecipe,
) -> list[tuple[float, int, int]]:
    """(score, first character, end character) of the best spans in the context, by falling score."""
    inside = np.array([index for index, span in enumerate(offsets) if span is not None])
    if not len(inside):
        return []
    starts = inside[np.argsort(-start[inside], kind="stable")[: recipe.n_best]]
    ends = inside[np.argsort(-end[inside], kind="stable")[: recipe.n_best]]
    spans = [
        (float(start[first] + end[last]), offsets[first][0], offsets[last][1])  # pyright: ignore[reportOptionalSubscript] - inside
        for first in starts
        for last in ends
        if first <= last < first + recipe.max_answer_length
    ]
    return sorted(spans, key=lambda span: -span[0])[: recipe.n_best]


def _choose(
    id_: str, spans: list[tuple[float, str]], null: float, recipe: SquadRecipe, answers: Answers
) -> None:
    """Add the question's entries to `answers`."""
    best: dict[str, float] = {}
    for score, text in sorted(spans, key=lambda span: -span[0]):
        best.setdefault(text, score)
    ranked = list(best.items())[: recipe.n_best]
    top_text, top = ranked[0] if ranked else ("", -np.inf)
    answers.best_spans[id_] = top_text
    if recipe.version == "2.0":
        answers.no_answer[id_] = float(null - top) if ranked else np.finfo(np.float32).max.item()
        ranked = sorted([*ranked, ("", null)], key=lambda item: -item[1])[: recipe.n_best]
        unanswered = answers.no_answer[id_] > recipe.null_score_threshold
        answers.predictions[id_] = "" if unanswered else top_text
    else:
        answers.predictions[id_] = top_text
    answers.n_best[id_] = [
        {"text": text, "score": score, "probability": share}
        for (text, score), share in zip(ranked, _softmax([s for _, s in ranked]), strict=True)
    ]


def _softmax(scores: list[float]) -> list[float]:
    exponentials = np.exp(np.array(scores) - max(scores, default=0.0))
    return (exponentials / exponentials.sum()).tolist()
