"""GLUE's metrics, computed by torchmetrics.

A correlation with constant predictions is undefined. Here it is 0, also for Matthews, so that a
collapsed run gains nothing; torchmetrics returns other values, in version 1.9 even -0.4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional import classification, pearson_corrcoef, spearman_corrcoef

from mslt_ds.evaluation.glue.tasks import Task


def scores(task: Task, outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """The task's metrics, from 0 or -1 to 1.

    outputs: (rows, classes) logits, or (rows, 1) predicted scores
    labels: (rows,) class numbers, or scores
    """
    if task.is_regression:
        predictions, targets = outputs.squeeze(-1).double(), labels.double()
    else:
        predictions, targets = outputs.argmax(-1), labels
    return {name: _COMPUTE[name](predictions, targets, task) for name in task.metrics}


def constant_scores(task: Task, labels: Tensor) -> dict[str, float]:
    """The score of the best constant answer by each metric. A model that has learned nothing can
    reach it.

    labels: (rows,) class numbers, or scores
    """
    if task.is_regression:
        return dict.fromkeys(task.metrics, 0.0)
    classes = torch.eye(len(task.labels))
    found = [scores(task, answer.expand(len(labels), -1), labels) for answer in classes]
    return {name: max(each[name] for each in found) for name in task.metrics}


def _accuracy(predictions: Tensor, labels: Tensor, task: Task) -> float:
    classes = len(task.labels)
    return classification.multiclass_accuracy(
        predictions, labels, num_classes=classes, average="micro"
    ).item()


def _f1(predictions: Tensor, labels: Tensor, task: Task) -> float:
    return classification.binary_f1_score(predictions, labels).item()


def _matthews(predictions: Tensor, labels: Tensor, task: Task) -> float:
    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    return classification.binary_matthews_corrcoef(predictions, labels).item()


def _spearman(predictions: Tensor, labels: Tensor, task: Task) -> float:
    return _correlation(spearman_corrcoef, predictions, labels)


def _pearson(predictions: Tensor, labels: Tensor, task: Task) -> float:
    return _correlation(pearson_corrcoef, predictions, labels)


def _correlation(
    function: Callable[[Tensor, Tensor], Tensor], predictions: Tensor, labels: Tensor
) -> float:
    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    return function(predictions, labels).item()


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


_COMPUTE: dict[str, Callable[[Tensor, Tensor, Task], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "spearman": _spearman,
    "pearson": _pearson,
}
