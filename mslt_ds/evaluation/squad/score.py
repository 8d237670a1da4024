"""SQuAD's scores, 1.1 and 2.0: EM and F1 of single answers by torchmetrics, totals by the official rules.

Source: Rajpurkar et al. 2016 and 2018 and their evaluation scripts. A question counts the best of its
gold answers. One that can't be answered has the gold answer "", and a gold answer that is empty once
articles and punctuation are gone is none. A question without a prediction counts 0 (the official script
for 1.1 does so; the one for 2.0 has no rule). The best threshold of 2.0 is found as the official script
does: over all no-answer probabilities in rising order, "no answer" above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchmetrics.functional.text import squad

from mslt_ds.evaluation.squad.data import Question


@dataclass(frozen=True)
class Score:
    """Of one question, or a mean of many: each from 0 to 1."""

    exact: float
    f1: float


_ZERO, _ONE = Score(0.0, 0.0), Score(1.0, 1.0)


def score_answer(prediction: str, gold: Sequence[str]) -> Score:
    """A prediction against the best of its gold answers, "" for no answer."""
    found = squad(
        {"id": "", "prediction_text": prediction},
        {"id": "", "answers": {"text": list(gold), "answer_start": [0] * len(gold)}},
    )
    return Score(found["exact_match"].item() / 100, found["f1"].item() / 100)


def report(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    version: str,
    no_answer: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """All figures of a version, in percent and under the official scripts' names.

    no_answer: 2.0 only; of each question, the probability (or any score) that it has no answer
    threshold: a question whose `no_answer` is above it is given none
    """
    if version == "1.1":
        gold = {question.id: [answer.text for answer in question.answers] for question in questions}
        return _means("", _score_all(gold, predictions), list(gold), "exact_match")
    gold = {question.id: _gold(question) for question in questions}
    raw = _score_all(gold, predictions)
    has_answer = {id_: texts != [""] for id_, texts in gold.items()}
    scores = raw
    if no_answer is not None:
        scores = {
            id_: _without_answer(has_answer[id_]) if no_answer[id_] > threshold else score
            for id_, score in raw.items()
        }
    figures = _means("", scores, list(has_answer))
    for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
        ids = [id_ for id_, has in has_answer.items() if has is wanted]
        if ids:
            figures |= _means(prefix, scores, ids)
    if no_answer is not None:
        figures |= _best_thresholds(predictions, raw, has_answer, no_answer)
    return figures


def _score_all(
    gold: Mapping[str, Sequence[str]], predictions: Mapping[str, str]
) -> dict[str, Score]:
    """Every question's score by its id; 0 where there's no prediction."""
    return {
        id_: score_answer(predictions[id_], texts) if id_ in predictions else _ZERO
        for id_, texts in gold.items()
    }


def _gold(question: Question) -> list[str]:
    """Gold answers by the rules of 2.0; of an unanswerable question the empty one."""
    texts = [answer.text for answer in question.answers]
    # The library's normalisation, asked for by what is equal to nothing.
    kept = [text for text in texts if score_answer("", [text]).exact == 0]
    return kept or [""]


def _without_answer(has_answer: bool) -> Score:
    return _ZERO if has_answer else _ONE


def _means(
    prefix: str, scores: Mapping[str, Score], ids: Sequence[str], exact: str = "exact"
) -> dict[str, float]:
    return {
        f"{prefix}{exact}": 100 * sum(scores[id_].exact for id_ in ids) / len(ids),
        f"{prefix}f1": 100 * sum(scores[id_].f1 for id_ in ids) / len(ids),
        f"{prefix}total": len(ids),
    }


def _best_thresholds(
    predictions: Mapping[str, str],
    raw: Mapping[str, Score],
    has_answer: Mapping[str, bool],
    no_answer: Mapping[str, float],
) -> dict[str, float]:
    """The best mean of each metric over all thresholds, and the threshold."""
    figures = {}
    order = sorted(has_answer, key=lambda id_: no_answer[id_])
    for name in ("exact", "f1"):
        # With a threshold below all, no question is answered.
        current = float(sum(not has for has in has_answer.values()))
        best, best_threshold = current, 0.0
        for id_ in order:
            if has_answer[id_]:
                current += getattr(raw[id_], name)
            elif predictions.get(id_):
                current -= 1
            if current > best:
                best, best_threshold = current, no_answer[id_]
        figures[f"best_{name}"] = 100 * best / len(has_answer)
        figures[f"best_{name}_thresh"] = best_threshold
    return figures
