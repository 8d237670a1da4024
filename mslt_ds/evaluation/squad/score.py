"""SQuAD's scores, 1.1 and 2.0: EM and F1 of single answers by torchmetrics, totals by the official rules.

Source: Rajpurkar et al. 2016 and 2018 and their evaluation scripts. A prediction is scored against
the gold answer that it matches best. An unanswerable question has the gold answer "", and gold answers
that are empty after normalization (without articles and punctuation) are dropped. A question without
a prediction scores 0, as in the official script for 1.1; the script for 2.0 has no rule. The best
threshold of 2.0 is searched as in the official script, over all no-answer probabilities in rising
order; questions above it get no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchmetrics.functional.text import squad

from mslt_ds.evaluation.squad.data import Question


@dataclass(frozen=True)
class Score:
    """EM and F1 of a prediction, each from 0 to 1."""

    exact: float
    f1: float


_ZERO, _ONE = Score(0.0, 0.0), Score(1.0, 1.0)


def score_answer(prediction: str, gold: Sequence[str]) -> Score:
    """The best score of a prediction over the gold answers; "" stands for no answer."""
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

    no_answer: for 2.0, the probability (or any score) of each question that it has no answer
    threshold: a question whose `no_answer` is above it gets no answer
    """
    if version == "1.1":
        gold = {question.id: [answer.text for answer in question.answers] for question in questions}
        return _means("", _score_all(gold, predictions), list(gold), "exact_match")
    gold = {question.id: _gold(question) for question in questions}
    raw = _score_all(gold, predictions)
    # As in the official script: also if all gold answers are dropped, such as an answer "the".
    has_answer = {question.id: bool(question.answers) for question in questions}
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
    """The score of each question by id; 0 if it has no prediction."""
    return {
        id_: score_answer(predictions[id_], texts) if id_ in predictions else _ZERO
        for id_, texts in gold.items()
    }


def _gold(question: Question) -> list[str]:
    """Gold answers by the rules of 2.0; [""] if there are none or all are dropped."""
    texts = [answer.text for answer in question.answers]
    # An answer that equals "" after the library's normalization is dropped.
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
    """The best mean of each metric over all thresholds, and that threshold."""
    figures = {}
    order = sorted(has_answer, key=lambda id_: no_answer[id_])
    for name in ("exact", "f1"):
        # Below the lowest threshold no question gets an answer.
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
