"""Reads SQuAD's JSON, versions 1.1 and 2.0. Errors name the file and the question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mslt_ds.errors import DataError
from mslt_ds.evaluation.text_files import read_json


@dataclass(frozen=True)
class Answer:
    """A gold answer. start: its first character in the context; None if the file doesn't say."""

    text: str
    start: int | None


@dataclass(frozen=True)
class Question:
    """A question with its paragraph. Without answers it is unanswerable (2.0)."""

    id: str
    text: str
    context: str
    answers: tuple[Answer, ...]


def read_questions(path: Path, version: str) -> list[Question]:
    """All questions of a SQuAD file, in its order. DataError names the file and the question."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise DataError(f'{path}: no list "data" in it; expected the SQuAD JSON')
    questions = list(_questions(path, content["data"]))
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"{path}: question {question.id} stands there twice")
        seen.add(question.id)
        if any(not any(map(str.isprintable, answer.text.split())) for answer in question.answers):
            raise DataError(
                f"{path}: question {question.id} has an answer of empty text; give its text, or mark an "
                'unanswerable question by "is_impossible": true'
            )
        if version == "1.1" and not question.answers:
            raise DataError(
                f"{path}: question {question.id} has no answer, as only version 2.0 allows; "
                "--version 2.0"
            )
    if not questions:
        raise DataError(f"{path}: no questions")
    return questions


def check_answers(path: Path, questions: list[Question]) -> None:
    """DataError unless every answer occurs in its context where the file says, as training needs."""
    for question in questions:
        for answer in question.answers:
            start = answer.start
            if start is None or question.context[start : start + len(answer.text)] != answer.text:
                raise DataError(
                    f"{path}: question {question.id}: the answer {answer.text!r} doesn't stand at "
                    f"answer_start {start} of its context"
                )


def _questions(path: Path, articles: list[Any]) -> Iterator[Question]:
    for number, article in enumerate(articles):
        try:
            for paragraph in article["paragraphs"]:
                for entry in paragraph["qas"]:
                    yield _question(entry, paragraph["context"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: article {number}: {error} is missing or of another type than SQuAD's"
            ) from error
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error


def _question(entry: dict[str, Any], context: str) -> Question:
    """TypeError names a value of another type than SQuAD's; ValueError one that contradicts another."""
    impossible = entry.get("is_impossible", False)
    given = entry.get("answers", []) if impossible is True else entry["answers"]
    answers = tuple(Answer(one["text"], one.get("answer_start")) for one in given)
    for name, value, kind in (
        ("id", entry["id"], str | int),
        ("question", entry["question"], str),
        ("context", context, str),
        ("is_impossible", impossible, bool),
        *(("text of an answer", one.text, str) for one in answers),
        *(("answer_start", one.start, int | None) for one in answers),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"question {entry['id']}: {name} {value!r}")
    if impossible and any(one.text.strip() for one in answers):
        raise ValueError(
            f'question {entry["id"]} has an answer and "is_impossible": true; leave one of them out'
        )
    return Question(
        str(entry["id"]), entry["question"].strip(), context, () if impossible else answers
    )
