"""Each task's metrics against scikit-learn's and scipy's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from mslt_ds.evaluation.glue.metrics import constant_scores, scores
from mslt_ds.evaluation.glue.tasks import TASKS

REFERENCE = {
    "accuracy": lambda labels, predictions: accuracy_score(labels, predictions),
    "f1": lambda labels, predictions: f1_score(labels, predictions),
    "matthews": lambda labels, predictions: matthews_corrcoef(labels, predictions),
    "spearman": lambda labels, predictions: stats.spearmanr(labels, predictions)[0],
    "pearson": lambda labels, predictions: stats.pearsonr(labels, predictions)[0],
}


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), rows=st.integers(4, 60))
def test_against_other_libraries(name, seed, rows):
    task = TASKS[name]
    generator = torch.Generator().manual_seed(seed)
    if task.is_regression:
        labels = (torch.rand(rows, generator=generator) * 20).round() / 4  # with ties
        labels[:2] = torch.tensor([0.0, 5.0])
        outputs = labels[:, None] + torch.randn(rows, 1, generator=generator)
        predictions = outputs[:, 0].double()
        labels = labels.double()
    else:
        classes = len(task.labels)
        labels = torch.randint(0, classes, (rows,), generator=generator)
        outputs = torch.randn(rows, classes, generator=generator)
        predictions = outputs.argmax(-1)
    found = scores(task, outputs, labels)
    assert list(found) == list(task.metrics)
    for metric, value in found.items():
        expected = REFERENCE[metric](labels.numpy(), predictions.numpy())
        assert value == pytest.approx(expected, abs=2e-6), metric


def test_the_papers_metric_counts():
    first = {name: task.metrics[0] for name, task in TASKS.items()}
    assert first == {
        "CoLA": "matthews", "SST-2": "accuracy", "MRPC": "f1", "STS-B": "spearman", "QQP": "f1",
        "MNLI": "accuracy", "QNLI": "accuracy", "RTE": "accuracy",
    }  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), rows=st.integers(4, 60))
def test_the_best_single_answer_against_other_libraries(name, seed, rows):
    task = TASKS[name]
    generator = torch.Generator().manual_seed(seed)
    if task.is_regression:
        labels = torch.rand(rows, generator=generator)
        assert constant_scores(task, labels) == {"spearman": 0.0, "pearson": 0.0}
        return
    labels = torch.randint(0, len(task.labels), (rows,), generator=generator)
    for metric, value in constant_scores(task, labels).items():
        answers = [torch.full_like(labels, number) for number in range(len(task.labels))]
        expected = max(REFERENCE[metric](labels.numpy(), answer.numpy()) for answer in answers)
        assert value == pytest.approx(expected, abs=2e-6), metric


def test_constant_predictions_count_nothing():
    labels = torch.tensor([0.0, 1.0, 4.0])
    assert scores(TASKS["STS-B"], torch.full((3, 1), 2.5), labels) == {"spearman": 0, "pearson": 0}
    outputs = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    assert scores(TASKS["CoLA"], outputs, torch.tensor([0, 1, 1]))["matthews"] == 0
