"""Attention's numbers against a direct computation, in loops, from Hugging Face's `output_attentions`."""

from __future__ import annotations

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from transformers import AlbertConfig, AlbertForPreTraining, AutoModel

from mslt_ds.analysis.attention import (
    STATISTICS,
    HeadStatistics,
    attentions,
    jensen_shannon,
    load_model,
    store_batches,
)
from mslt_ds.analysis.attention_command import find, find_snapshots
from mslt_ds.analysis.attention_page import attention_section, heads_csv, read_findings
from mslt_ds.analysis.report_command import read_runs, report_page
from mslt_ds.cli import main
from mslt_ds.data.store import TokenStore
from tests.unit.analysis.runs import write_run
from tests.unit.evaluation.conftest import ANY, TOKENS, save_any, save_model, save_tokenizer

CLS, SEP = 2, 3
TEXT = "the film is good , the actors are bad ."


def save_albert(folder):
    torch.manual_seed(1)
    config = AlbertConfig(
        vocab_size=len(TOKENS), embedding_size=16, hidden_size=32, num_hidden_layers=4, num_hidden_groups=2,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    AlbertForPreTraining(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def direct(p: np.ndarray, ids: list[int]) -> dict[str, list[float]]:
    """The statistics' terms of one head on one sequence without padding. p: (tokens, tokens)"""
    found: dict[str, list[float]] = {name: [] for name in STATISTICS}
    n = len(ids)
    for q in range(n):
        found["cls"].append(sum(p[q, k] for k in range(n) if ids[k] == CLS))
        found["sep"].append(sum(p[q, k] for k in range(n) if ids[k] == SEP))
        found["self"].append(p[q, q])
        if q > 0:
            found["previous"].append(p[q, q - 1])
        if q + 1 < n:
            found["next"].append(p[q, q + 1])
        found["entropy"].append(-sum(p[q, k] * math.log(p[q, k]) for k in range(n) if p[q, k] > 0))
        found["distance"].append(sum(p[q, k] * abs(q - k) for k in range(n)))
    return found


@pytest.mark.parametrize("save", [save_model, save_albert], ids=["bert", "albert"])
def test_statistics_equal_a_direct_computation(tmp_path, save):
    folder = save(tmp_path / "model")
    torch.manual_seed(2)
    rows = [[CLS, *torch.randint(5, len(TOKENS), (n,)).tolist(), SEP] for n in (9, 5, 7)]
    longest = max(map(len, rows))
    batch = {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        ),
    }
    statistics = HeadStatistics(CLS, SEP)
    model = load_model(folder)
    statistics.add(attentions(model, batch), batch)
    first = {key: value[:1] for key, value in batch.items()}
    statistics.add(attentions(model, first), first)  # counted by tokens, not by batches

    plain = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    terms: dict[tuple[int, int], dict[str, list[float]]] = {}
    for row in [*rows, rows[0]]:
        with torch.no_grad():
            layers = plain(torch.tensor([row]), output_attentions=True).attentions
        for layer, weights in enumerate(layers):
            for head, p in enumerate(weights[0].double().numpy()):
                of_head = terms.setdefault((layer, head), {name: [] for name in STATISTICS})
                for name, values in direct(p, row).items():
                    of_head[name] += values
    found = statistics.rows("x")
    assert len(found) == len(terms)
    for row in found:
        for name in STATISTICS:
            expected = np.mean(terms[row["layer"], row["head"]][name])
            assert row[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), (row, name)


def test_jensen_shannon_is_scipys():
    torch.manual_seed(3)
    a, b = torch.softmax(4 * torch.randn(2, 2, 3, 5, 7), -1)
    expected = jensenshannon(a.double().numpy(), b.double().numpy(), base=2, axis=-1)  # type: ignore[call-arg]
    assert jensen_shannon(a, b).numpy() == pytest.approx(expected, abs=1e-6)
    assert jensen_shannon(a, a).abs().max() == 0
    one, other = torch.eye(2)
    assert jensen_shannon(one, other) == 1


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    """A store of short documents with the model's tokenizer, made by the program."""
    root = tmp_path_factory.mktemp("store")
    save_tokenizer(root / "tokenizer")
    texts = [f"the {word} is good .\nthe film is {word} , and bad .\n" for word in ("film", "actor", "plot", "story")]  # fmt: skip
    (root / "text.txt").write_text("\n".join(texts))
    command = ["prepare", "--input", str(root / "text.txt"), "--output", str(root / "store"),
               "--tokenizer", str(root / "tokenizer")]  # fmt: skip
    assert main(command) == 0
    return root / "store"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose stage 2 froze the two layers of stage 1, and whose joint stage moved all four."""
    run = write_run(tmp_path_factory.mktemp("runs") / "run")
    two = save_model(run / "stages" / "1" / "end")
    four = save_model(run / "stages" / "2" / "end", num_hidden_layers=4)
    from safetensors.torch import load_file, save_file

    lower, upper = (load_file(folder / "model.safetensors") for folder in (two, four))
    save_file(upper | lower, four / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(four, run / "stages" / "2" / "start")
    shutil.copytree(four, run / "stages" / "3" / "end")
    joint = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in (upper | lower).items()}  # fmt: skip
    save_file(joint, run / "stages" / "3" / "end" / "model.safetensors", metadata={"format": "pt"})
    return run


def test_command_on_a_run(run, store_folder, tmp_path):
    out = tmp_path / "out"
    command = ["attention", str(run), "--text", TEXT, "--output", str(out), "--store", str(store_folder),
               "--twin", str(run / "stages" / "2" / "end")]  # fmt: skip
    assert main(command) == 0
    with (out / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["model"], row["layer"], row["head"]) for row in rows} == {
        (model, str(layer), str(head))
        for model, depth in (("stages/1/end", 2), ("stages/2/end", 4), ("stages/3/end", 4), ("twin", 4))
        for layer in range(1, depth + 1)
        for head in (1, 2)
    }  # fmt: skip
    found = json.loads((out / "attention.json").read_text())
    moved = {(row["after"], row["layer"]): row["distance"] for row in found["between_stages"]}
    assert moved["stages/2/end", 0] == moved["stages/2/end", 1] == 0, "frozen"
    assert min(moved["stages/3/end", layer] for layer in range(4)) > 0.01
    assert [moment["label"] for moment in found["stacking"]] == [
        "before stacking, layer 2", "stacked, layer 4", "after stage 2, layer 4",
        "after stage 3, layer 4", "full twin, layer 4",
    ]  # fmt: skip
    with (out / "tables" / "between_layers.csv").open() as file:
        (header, *lines) = csv.reader(file)
    assert header == ["model", "layer", "layer 1", "layer 2", "layer 3", "layer 4"]
    assert {line[0] for line in lines} == {"stage 3", "full twin"} and len(lines) == 8
    distances = [[float(value) for value in line[2:]] for line in lines[:4]]
    assert distances == pytest.approx(np.array(found["between_layers"]["stages/3/end"]), abs=1e-9)
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures >= {"bottom_and_top.png", "around_stacking.svg", "over_stages.svg", "head_statistics.png"}  # fmt: skip
    assert figures >= {"between_layers.svg"}, "of the run and of its twin"
    html = (out / "index.html").read_text()
    most = np.max([found["maps"]["stages/3/end"][layer][:2] for layer in (0, 3)])
    assert f"from 0 (dark) to {most:.0%} (bright)" in html
    assert "4 held-out sequences" in html and TEXT in html
    page = report_page(read_runs([run]), attention=[read_findings(out)])
    (section,) = [section for section in page.sections if section.title == "Attention of mslt"]
    assert "attention_mslt_bottom_and_top" in {part.name for part in section.parts}
    assert main(["report", str(run), "--output", str(tmp_path), "--attention", str(run)]) == 2


def test_a_model_of_another_family(tmp_path):
    folder = save_albert(tmp_path / "albert")
    record, snapshots = find_snapshots(folder)
    found = find(record, snapshots, TEXT, store=None, sequences=1, seq_length=64)
    maps = np.array(found.maps["model"])
    assert maps.shape == (4, 4, len(found.tokens), len(found.tokens))
    assert maps.sum(-1) == pytest.approx(1)
    assert found.tokens[0] == "[CLS]" and "film" in found.tokens
    assert (found.sequences, found.between_stages) == (0, [])
    section = attention_section(found, layers=[1], heads=[3, 0])
    assert "sentence alone" in section.text
    assert len(heads_csv(found).splitlines()) == 1 + 4 * 4


@pytest.mark.parametrize("family", sorted(ANY))
def test_every_family(tmp_path, family):
    record, snapshots = find_snapshots(save_any(tmp_path / family, family))
    found = find(record, snapshots, TEXT, store=None, sequences=1, seq_length=64)
    maps = np.array(found.maps["model"])
    assert maps.shape == (2, 2, len(found.tokens), len(found.tokens))
    assert maps.sum(-1) == pytest.approx(1)
    assert len(found.heads) == 4 and np.isfinite([row["distance"] for row in found.heads]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "3"], "--layers: 3; the model has layers 1 to 2"),
        (["--heads", "0"], "--heads: 0; the model has heads 1 to 2"),
        (["--text", ""], "--text: ''"),
        (["--store", "nowhere"], "nowhere: no such token store"),
    ],
)
def test_mistakes(tmp_path, options, message, capsys):
    model = save_model(tmp_path / "model")
    command = ["attention", str(model), "--text", TEXT, "--output", str(tmp_path / "out")]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model(tmp_path, capsys):
    command = ["attention", str(tmp_path), "--text", TEXT, "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "no config.json here" in capsys.readouterr().err
    run = write_run(tmp_path / "run", steps=50)
    assert main(["attention", str(run), *command[2:]]) == 2
    assert "no model here yet" in capsys.readouterr().err


def test_store_of_another_vocabulary(tmp_path, store_folder, capsys):
    folder = save_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = len(TOKENS)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    command = ["attention", str(folder), "--text", TEXT, "--output", str(tmp_path / "out"), "--store", str(store_folder)]  # fmt: skip
    assert main(command) == 2
    assert "prepare the text with --tokenizer" in capsys.readouterr().err


def test_sequences_of_a_store(store_folder):
    store = TokenStore.open(store_folder)
    (batch,) = store_batches(store, 3, 8)
    assert batch["input_ids"].shape == (3, 8)
    assert (batch["input_ids"][:, 0] == store.corpus.special.cls).all()
    lengths = batch["attention_mask"].sum(1)
    for row, length in zip(batch["input_ids"], lengths, strict=True):
        assert row[length - 1] == store.corpus.special.sep
