"""Windows of token ids for questions, labelled with the position of the answer.

A long paragraph is divided into several windows, of which consecutive ones share `stride` tokens. In a
window without the whole answer, or for an unanswerable question, the label is [CLS], position 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mslt_ds.errors import CheckpointError, RecipeError
from mslt_ds.evaluation.encoded import LabelledEncoded
from mslt_ds.evaluation.squad.data import Question
from mslt_ds.evaluation.squad.recipe import SquadRecipe


@dataclass(frozen=True)
class Windows:
    """The windows of many questions.

    encoded: their token ids, with labels (windows, 2): first and last token of the answer
    questions: the position of each window's question
    offsets: for each window, the (first, end) characters of its tokens in the context; None for
        tokens outside it
    """

    encoded: LabelledEncoded
    questions: list[int]
    offsets: list[list[tuple[int, int] | None]]


def check_stride(questions: Sequence[Question], tokenizer: Any, recipe: SquadRecipe) -> None:
    """RecipeError unless every window holds more tokens of the context than consecutive ones share."""
    found = tokenizer([question.text for question in questions], add_special_tokens=False)
    longest = min(recipe.max_question_length, max(map(len, found["input_ids"])))
    room = recipe.max_length - longest - tokenizer.num_special_tokens_to_add(pair=True)
    if recipe.stride >= room:
        raise RecipeError(
            f"stride: {recipe.stride}, but at max_length {recipe.max_length} a question of {longest} "
            f"tokens leaves {room} for its context; stride has to be smaller, or max_length larger"
        )


def make_windows(questions: Sequence[Question], tokenizer: Any, recipe: SquadRecipe) -> Windows:
    """Tokenize all questions and divide them into windows."""
    texts = _cut_questions([question.text for question in questions], tokenizer, recipe)
    found = tokenizer(
        texts,
        [question.context for question in questions],
        truncation="only_second",
        max_length=recipe.max_length,
        stride=recipe.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    columns = {name: found[name] for name in tokenizer.model_input_names if name in found}
    of_question = found["overflow_to_sample_mapping"]
    offsets: list[list[tuple[int, int] | None]] = []
    labels = []
    for window, question in enumerate(of_question):
        _check_cls(found["input_ids"][window], tokenizer)
        sides = found.sequence_ids(window)
        offsets.append(
            [
                tuple(span) if side == 1 else None
                for span, side in zip(found["offset_mapping"][window], sides, strict=True)
            ]
        )
        labels.append(_place(questions[question], offsets[-1]))
    encoded = LabelledEncoded(columns, tokenizer.pad_token_id, torch.tensor(labels))
    return Windows(encoded, list(of_question), offsets)


def _cut_questions(texts: list[str], tokenizer: Any, recipe: SquadRecipe) -> list[str]:
    """The questions, truncated to `max_question_length` tokens."""
    found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    limit = recipe.max_question_length
    return [
        text if len(spans) <= limit else text[: spans[limit - 1][1]]
        for text, spans in zip(texts, found["offset_mapping"], strict=True)
    ]


def _check_cls(ids: list[int], tokenizer: Any) -> None:
    if ids[0] != tokenizer.cls_token_id:
        raise CheckpointError(
            "the tokenizer doesn't begin a pair with its [CLS] token, which stands for no answer; "
            "use a BERT-like encoder"
        )


def _place(question: Question, offsets: list[tuple[int, int] | None]) -> tuple[int, int]:
    """First and last token of the first gold answer in a window; (0, 0) if it isn't inside."""
    start = question.answers[0].start if question.answers else None
    if start is None:
        return 0, 0
    end = start + len(question.answers[0].text)
    spans = [(index, span) for index, span in enumerate(offsets) if span is not None]
    if not spans or spans[0][1][0] > start or spans[-1][1][1] < end:
        return 0, 0
    first = max(index for index, span in spans if span[0] <= start)
    last = min(index for index, span in spans if span[1] >= end)
    return (first, last) if first <= last else (0, 0)
