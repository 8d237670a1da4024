"""Runs on instances that aren't the original BERT's: what they report, what they export, and two
phases of sequence length over one store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, BertForMaskedLM

from tests.distributed.recipes import (
    SCRIPTS,
    metrics_of,
    recipe,
    weights_at,
    write_recipes,
)

FORMATS = {
    "sop": {"input_format": "sop", "masking": "whole_word"},
    "packed": {"input_format": "full_sentences", "masking": "span"},
}


@pytest.fixture(scope="module")
def runs(module_launch, store, tmp_path_factory) -> Path:
    """A run of each format on two ranks, with a last stage of longer sequences."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = [
        recipe(
            store, folder, name,
            plan={"long_sequence": {"share": 0.15, "seq_length": 64}},
            data={"eval_path": str(store), "num_workers": 1} | changes,
            evaluation={"instances": 24},
        )
        for name, changes in FORMATS.items()
    ]  # fmt: skip
    module_launch(SCRIPTS / "run_recipes.py", 2, write_recipes(folder / "recipes.json", recipes))
    return folder


def events_of(run: Path, name: str) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == name]


@pytest.mark.parametrize("name", FORMATS)
def test_losses_have_the_objectives_name(runs: Path, name: str):
    sentence_losses = {"sop_loss"} if name == "sop" else set()
    for line in metrics_of(runs / name):
        losses = {key for key in line if key.endswith("_loss")}
        assert losses == {"mlm_loss"} | sentence_losses
        assert line["loss"] == pytest.approx(sum(line[key] for key in losses))
        assert 0 <= line["data_wait_seconds"] <= line["step_seconds"]
    for line in events_of(runs / name, "stage_end"):
        losses = {key for key in line if key.startswith("eval_")}
        assert losses == {"eval_mlm_loss"} | {f"eval_{key}" for key in sentence_losses}


@pytest.mark.parametrize("name", FORMATS)
def test_two_phases_of_sequence_length_share_the_store(runs: Path, name: str, store: Path):
    lengths = [line["seq_length"] for line in events_of(runs / name, "stage_end")]
    assert lengths[0] == 32 and lengths[-1] == 64
    assert [line["step"] for line in metrics_of(runs / name)] == list(range(14))
    assert all(line["loss"] is not None for line in metrics_of(runs / name))


def test_what_was_trained_on_pairs_is_a_pretraining_model(runs: Path):
    model, info = AutoModelForPreTraining.from_pretrained(
        runs / "sop" / "model", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.architectures == ["BertForPreTraining"]


def test_what_was_trained_on_packed_sentences_is_a_masked_lm(runs: Path):
    folder = runs / "packed" / "model"
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert isinstance(model, BertForMaskedLM)
    assert model.config.architectures == ["BertForMaskedLM"]
    names = weights_at(runs / "packed", "model")
    assert not any(name.startswith(("bert.pooler", "cls.seq_relationship")) for name in names)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    start = weights_at(runs / "packed", "stages/1/start")
    moved = {name for name in start if not torch.equal(start[name], names[name])}
    assert "cls.predictions.transform.dense.weight" in moved
