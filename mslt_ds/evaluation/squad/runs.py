"""Fine-tuning on SQuAD: the windows, scoring a cell, and its files of predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import AutoModelForQuestionAnswering

from mslt_ds.atomic import replace_text
from mslt_ds.evaluation.batches import evaluation_batches
from mslt_ds.evaluation.cells import fingerprint
from mslt_ds.evaluation.encoded import Encoded
from mslt_ds.evaluation.encoder import check_max_length, fresh_note
from mslt_ds.evaluation.finetune import Batch, Loss, predict
from mslt_ds.evaluation.grid import Cell
from mslt_ds.evaluation.results import Columns, Constants, percent
from mslt_ds.evaluation.runner import Runner
from mslt_ds.evaluation.squad import score
from mslt_ds.evaluation.squad.answers import Answers, find_answers
from mslt_ds.evaluation.squad.data import Question
from mslt_ds.evaluation.squad.features import Windows, check_stride, make_windows
from mslt_ds.evaluation.squad.recipe import SquadRecipe

PREDICTIONS = "predictions"


@dataclass
class SquadRunner(Runner[SquadRecipe]):
    """Fine-tunes on one version of SQuAD.

    output: the folder in which `predictions` are written
    """

    train_questions: list[Question]
    dev_questions: list[Question]
    output: Path
    _windows: tuple[Windows, Windows] | None = field(default=None, repr=False)

    @property
    def task(self) -> str:
        return f"SQuAD-{self.recipe.version}"

    def columns(self) -> Columns:
        """F1 is the main metric, EM the other."""
        return {self.task: {self.task: ("f1", "exact")}}

    def constants(self) -> Constants:
        """For 2.0, the score of "no answer" to all questions. No other answer fits several questions."""
        unanswerable = sum(not question.answers for question in self.dev_questions)
        if not unanswerable:
            return {}
        share = unanswerable / len(self.dev_questions)
        return {self.task: {self.task: {"f1": share, "exact": share}}}

    def fingerprints(self) -> dict[str, str]:
        texts = [
            [[q.id, q.text, q.context, [[a.text, a.start] for a in q.answers]] for q in questions]
            for questions in (self.train_questions, self.dev_questions)
        ]
        recipe = self.recipe.what_scores_depend_on(self.task)
        return {self.task: fingerprint(self.encoder.digest, recipe, texts)}

    def work(self) -> dict[str, float]:
        """Training questions times epochs. There is one task, so any unit will do."""
        return {self.task: float(len(self.train_questions) * self.recipe.epochs)}

    def check(self) -> list[str]:
        model, fresh = self.build_on_cpu(self.task, seed=0)
        check_max_length(model, self.encoder, self.recipe.max_length)
        for questions in (self.train_questions, self.dev_questions):
            check_stride(questions, self.encoder.tokenizer, self.recipe)
        return [fresh_note(fresh)]

    def build_on_cpu(self, task: str, seed: int) -> tuple[nn.Module, list[str]]:
        return self.encoder.build(AutoModelForQuestionAnswering, seed)

    def epochs(self, task: str) -> int:
        return self.recipe.epochs

    def train_examples(self, task: str) -> int:
        return len(self.train_questions)

    def train_split(self, task: str) -> Encoded:
        return self.windows[0].encoded

    def loss_of(self, task: str) -> Loss:
        return span_loss

    def score(self, cell: Cell, model: nn.Module) -> dict[str, Any]:
        answers = self.answer(model)
        self._write(cell, answers)
        figures = score.report(
            self.dev_questions,
            answers.best_spans,
            self.recipe.version,
            answers.no_answer or None,
            self.recipe.null_score_threshold,
        )
        exact = figures["exact_match" if self.recipe.version == "1.1" else "exact"]
        scores = {"f1": figures["f1"] / 100, "exact": exact / 100}
        return {"scores": {self.task: scores}, "figures": figures}

    def answer(self, model: nn.Module) -> Answers:
        """The model's answers to the dev questions."""
        _, windows = self.windows
        longest = max(windows.encoded.lengths)

        def outputs(model: nn.Module, batch: Batch) -> Tensor:
            logits = span_logits(model, batch)
            return pad(logits, (0, 0, 0, max(0, longest - logits.shape[1])))[:, :longest]

        batches = evaluation_batches(windows.encoded.lengths, self.recipe.eval_batch_size)
        logits = predict(model, batches, windows.encoded.batch, outputs, self.recipe.precision)
        return find_answers(self.dev_questions, windows, logits.numpy(), self.recipe)

    def summary(self, scores: Mapping[str, Mapping[str, float]]) -> str:
        found = scores[self.task]
        return f"EM {percent(found['exact'])}, F1 {percent(found['f1'])}"

    @property
    def windows(self) -> tuple[Windows, Windows]:
        """The windows of train and dev, tokenized on first use."""
        if self._windows is None:
            tokenizer = self.encoder.tokenizer
            self._windows = (
                make_windows(self.train_questions, tokenizer, self.recipe),
                make_windows(self.dev_questions, tokenizer, self.recipe),
            )
        return self._windows

    def _write(self, cell: Cell, answers: Answers) -> None:
        """Write predictions, n-best lists and no-answer scores under the cell's name."""
        folder = self.output / PREDICTIONS
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[str, Any] = {"predictions": answers.predictions, "n_best": answers.n_best}
        if answers.no_answer:
            files["no_answer"] = answers.no_answer
        for name, content in files.items():
            text = json.dumps(content, indent=1, ensure_ascii=False)
            replace_text(folder / f"{cell.name}_{name}.json", text + "\n")


def span_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Start and end logits, (windows, tokens, 2)."""
    found = model(**batch)
    return torch.stack((found.start_logits, found.end_logits), dim=-1)


def span_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of the first and the last token over the window's positions."""
    labels = batch.pop("labels")
    logits = span_logits(model, batch).float()
    return cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels.flatten())
