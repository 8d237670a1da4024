"""Trust ratios by layer."""

from __future__ import annotations

import pytest

from mslt_ds.optim.statistics import by_layer, layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert.encoder.layer.11.output.dense.weight", "layer_11"),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", "group_0"),
        ("albert.encoder.embedding_hidden_mapping_in.weight", "embeddings"),
        ("predictions.LayerNorm.weight", "predictions"),
        ("sop_classifier.classifier.weight", "sop_classifier"),
        ("bert.embeddings.word_embeddings.weight", "embeddings"),
        ("bert.pooler.dense.weight", "pooler"),
        ("cls.predictions.transform.dense.weight", "cls"),
        ("weight", "weight"),
    ],
)
def test_layer_of(name: str, layer: str) -> None:
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
