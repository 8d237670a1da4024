"""Trust ratios by layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mslt_ds.model.families import FAMILIES
from mslt_ds.optim.statistics import by_layer
from mslt_ds.optim.statistics import layer_of as plain

BERT, ALBERT = FAMILIES["bert"].part_of, FAMILIES["albert"].part_of


@pytest.mark.parametrize(
    ("layer_of", "name", "layer"),
    [
        (BERT, "bert.encoder.layer.11.output.dense.weight", "layer_11"),
        (ALBERT, "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", "group_0"),
        (ALBERT, "albert.encoder.embedding_hidden_mapping_in.weight", "embeddings"),
        (ALBERT, "predictions.LayerNorm.weight", "predictions"),
        (ALBERT, "sop_classifier.classifier.weight", "sop_classifier"),
        (BERT, "bert.embeddings.word_embeddings.weight", "embeddings"),
        (BERT, "bert.pooler.dense.weight", "pooler"),
        (BERT, "cls.predictions.transform.dense.weight", "cls"),
        (plain, "weight", "weight"),
        (plain, "bert.encoder.layer.11.output.dense.weight", "layer_11"),
    ],
)
def test_layer_of(layer_of: Callable[[str], str], name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_by_layer() -> None:
    ratios = [
        ("e.layer.10.a.weight", 4.0),
        ("e.layer.2.a.weight", 1.0),
        ("e.layer.2.b.weight", 3.0),
        ("e.layer.2.c.weight", 2.5),
        ("bert.pooler.dense.weight", 0.5),
    ]
    assert by_layer(ratios) == {
        "pooler": {"min": 0.5, "median": 0.5, "max": 0.5},
        "layer_2": {"min": 1.0, "median": 2.5, "max": 3.0},
        "layer_10": {"min": 4.0, "median": 4.0, "max": 4.0},
    }
    assert list(by_layer(ratios)) == ["pooler", "layer_2", "layer_10"]
