"""Held-out loss: Hugging Face's own at the same masks, for every family; source by source."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForPreTraining,
    ModernBertConfig,
    RobertaConfig,
)

from mslt_ds.cli import main
from mslt_ds.data.loader import InstanceSequence
from mslt_ds.data.prepare.command import prepare
from mslt_ds.data.store import TokenStore
from mslt_ds.evaluation import mlm
from tests.text import write_text

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
CONFIGS = {
    "bert": (BertConfig, {}),
    "albert": (AlbertConfig, {"embedding_size": 16}),
    "roberta": (RobertaConfig, {"max_position_embeddings": 65}),
    "modernbert": (ModernBertConfig, {"local_attention": 8, "global_attn_every_n_layers": 2}),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    """Of two sources, of which the second one is longer."""
    folder = tmp_path_factory.mktemp("store")
    write_text(folder / "a.txt", documents=6)
    write_text(folder / "b.txt", documents=14, seed=1)
    prepare(
        [folder / "a.txt", folder / "b.txt"], folder / "tokens", vocab_size=200, workers=1
    )  # fmt: skip
    return TokenStore.open(folder / "tokens")


def save(store: TokenStore, folder, family="bert", auto_class: Any = AutoModelForMaskedLM):
    config_class, own = CONFIGS[family]
    torch.manual_seed(1)
    model = auto_class.from_config(config_class(**SIZES | own, vocab_size=store.vocab_size))
    model.save_pretrained(folder)
    shutil.copytree(store.tokenizer_dir, folder, dirs_exist_ok=True)
    return folder


def evaluate(store: TokenStore, model, *more: str) -> int:
    return main(["evaluate", "mlm", "--model", str(model), "--data", str(store.path), *more])


def reference(store: TokenStore, folder, seq_length: int) -> dict[str, tuple[float, int]]:
    """Source -> (loss, masked tokens), instance by instance, from logits at all positions."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    sequence = InstanceSequence(store, mlm.options_of(seq_length, 0.15), 0)
    border = next(iter(mlm.documents_by_source(store).values()))
    sums = {"a.txt": [0.0, 0], "b.txt": [0.0, 0]}
    for entry in sequence.index(0):
        instance = sequence.build(np.array([entry]), np.array([sequence.key(0)]))
        labels = torch.full_like(instance["input_ids"], -100)
        used = instance["masked_weights"][0] > 0
        labels[0, instance["masked_positions"][0, used]] = instance["masked_labels"][0, used]
        with torch.no_grad():
            loss = model(
                input_ids=instance["input_ids"],
                attention_mask=instance["attention_mask"].long(),
                labels=labels,
            ).loss
        first = int(entry & np.uint64((1 << 48) - 1))
        of = sums["a.txt" if first < store.corpus.documents[border] else "b.txt"]
        of[0] += float(loss) * int(used.sum())
        of[1] += int(used.sum())
    return {name: (total / count, count) for name, (total, count) in sums.items()}


@pytest.mark.parametrize("family", list(CONFIGS))
def test_the_loss_is_hugging_faces_by_source(store, tmp_path, family, capsys):
    folder = save(store, tmp_path / "model", family)
    output = tmp_path / "out"
    assert evaluate(store, folder, "--output", str(output), "--batch-size", "8") == 0
    found = json.loads((output / "mlm.json").read_text())
    assert found["seq_length"] == 64
    expected = reference(store, folder, 64)
    assert [source["name"].rpartition("/")[2] for source in found["sources"]] == list(expected)
    for source, (loss, count) in zip(found["sources"], expected.values(), strict=True):
        assert source["predictions"] == count
        assert source["loss"] == pytest.approx(loss, rel=1e-5)
        assert source["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    total = sum(loss * count for loss, count in expected.values())
    assert found["all"]["loss"] == pytest.approx(total / found["all"]["predictions"], rel=1e-5)
    shown = capsys.readouterr().out
    assert f"| all | 20 | {found['all']['instances']} |" in shown
    assert (output / "mlm.md").read_text().splitlines()[-1] in shown


def test_some_instances_are_drawn_from_all(store, tmp_path):
    folder = save(store, tmp_path / "model")
    for seed, name in ((0, "first"), (0, "again"), (1, "other")):
        more = ("--instances", "10", "--seed", str(seed), "--output", str(tmp_path / name))
        assert evaluate(store, folder, *more) == 0
    first, again, other = (
        json.loads((tmp_path / name / "mlm.json").read_text())["all"]
        for name in ("first", "again", "other")
    )
    assert first["instances"] == 10
    assert first == again
    assert first["loss"] != other["loss"]


def test_a_store_that_names_no_sources_is_one(store, tmp_path):
    shutil.copytree(store.path, tmp_path / "plain")
    manifest = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    del manifest["sources"]
    (tmp_path / "plain" / "manifest.json").write_text(json.dumps(manifest))
    assert mlm.documents_by_source(TokenStore.open(tmp_path / "plain")) == {"plain": 20}


def test_what_cannot_be_evaluated_is_refused(store, tmp_path, capsys):
    folder = save(store, tmp_path / "model")

    def fails(model, *more):
        assert evaluate(store, model, *more) == 2
        return capsys.readouterr().err

    assert "--seq-length: 128, but" in fails(folder, "--seq-length", "128")
    assert "--masked-lm-prob: 1.5; it has to be" in fails(folder, "--masked-lm-prob", "1.5")
    assert "--batch-size: 0; it has to be at least 1" in fails(folder, "--batch-size", "0")
    headless = save(store, tmp_path / "headless", auto_class=AutoModel)
    assert "so it has no masked-LM head" in fails(headless)
    other = tmp_path / "other"
    write_text(tmp_path / "other.txt", documents=9, seed=5)
    prepare([tmp_path / "other.txt"], other, vocab_size=200, workers=1)
    shutil.copytree(other / "tokenizer", folder, dirs_exist_ok=True)
    assert f"its vocabulary isn't that of --data {store.path}; prepare" in fails(folder)


def test_a_model_with_more_heads_is_taken(store, tmp_path):
    folder = tmp_path / "model"
    BertForPreTraining(BertConfig(**SIZES, vocab_size=store.vocab_size)).save_pretrained(folder)
    shutil.copytree(store.tokenizer_dir, folder, dirs_exist_ok=True)
    assert evaluate(store, folder, "--instances", "4") == 0
