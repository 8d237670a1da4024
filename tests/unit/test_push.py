"""Models, cards and scores reach a hub as revisions, and nobody's edits are lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from mslt_ds.cli import main
from mslt_ds.disk.card import is_ours, seal, write_card
from mslt_ds.push import plan_uploads
from mslt_ds.report.model_card import write_model_card
from mslt_ds.report.record import RunRecord
from tests.unit.analysis.runs import results, write_run
from tests.unit.hub import serve

CONFIG = {"model_type": "bert", "architectures": ["BertForPreTraining"], "num_hidden_layers": 4,
          "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 500}  # fmt: skip
NAMES = {"stage-1": "stages/1/end", "stage-2": "stages/2/end", "stage-3": "stages/3/end", "main": "model"}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A finished run with models whose weights are a few bytes."""
    folder = write_run(tmp_path / "runs" / "tiny")
    start = {"host": "h", "device": "CPU", "world_size": 2, "versions": {"torch": "2"}, "data": {"data.path": "ab" * 32}}  # fmt: skip
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
    for name in NAMES.values():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(CONFIG))
        (folder / name / "model.safetensors").write_bytes(name.encode() * 10)
        (folder / name / "vocab.txt").write_text("[PAD]\n")
        settings = {"mask_token": {"content": "<mask>", "lstrip": True}}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
        write_model_card(folder, name)
    return folder


def push(hub_url, run, *options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": hub_url, "HF_TOKEN": "hf_test", "HF_HOME": str(run.parent / "hf"),
                                "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*",
                                "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "mslt_ds.cli", "push", str(run), "--repo", "someone/tiny", *options],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_all_revisions_arrive_and_edits_stay(run):
    (run / "stages" / "1" / "end" / "README.md").write_text("mine\n")
    (run.parent / "results.json").write_text(
        json.dumps(results(run / "model", {"RTE": {"RTE": {"accuracy": 0.61234}}}))
    )
    with serve() as hub:
        done = push(hub.url, run, "--private", "--results", str(run.parent / "results.json"))
        assert done.returncode == 0, done.stderr
        assert (hub.repository, hub.private) == ("someone/tiny", True)
        assert hub.tokens == {"Bearer hf_test"}
        assert {revision for revision, _ in hub.messages} == set(NAMES)
        for revision, name in NAMES.items():
            for file in ("config.json", "vocab.txt", "model.safetensors"):
                assert hub.revisions[revision][file] == (run / name / file).read_bytes()
        assert hub.revisions["stage-1"]["README.md"] == b"mine\n"
        card = hub.revisions["main"]["README.md"].decode()
        assert 'from_pretrained("someone/tiny")' in card
        assert "| RTE | accuracy | 61.2 |" in card
        metadata = yaml.safe_load(card.split("---")[1])
        assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.6123
        stage = hub.revisions["stage-2"]["README.md"].decode()
        assert 'from_pretrained("someone/tiny", revision="stage-2")' in stage
        assert "RTE" not in stage, "the scores are another model's"

        hub.revisions["main"]["README.md"] = b"edited at the hub\n"
        again = push(hub.url, run)
        assert again.returncode == 0, again.stderr
        assert hub.revisions["main"]["README.md"] == b"edited at the hub\n"
        assert "README.md was edited there and is kept" in again.stdout
        assert b"RTE" not in hub.revisions["stage-2"]["README.md"]

        hub.refuse_with = 403
        refused = push(hub.url, run)
        assert refused.returncode == 3
        assert "error: --repo: the hub can't be used" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_dry_run_asks_nobody(run, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    assert main(["push", str(run), "--repo", "someone/tiny", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"someone/tiny, revision main: from {run}/model\n" in out
    assert "  model.safetensors  50 bytes" in out
    assert "stage-3" in out and "README.md" in out and "nothing was uploaded" in out


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "some one/x", "a/b.git"])
def test_names_that_the_hub_refuses(run, name, capsys):
    assert main(["push", str(run), "--repo", name, "--dry-run"]) == 2
    assert f"error: --repo: {name}" in capsys.readouterr().err


def test_a_run_without_a_model(tmp_path, capsys):
    folder = write_run(tmp_path / "run", steps=50)
    assert main(["push", str(folder), "--repo", "a/b"]) == 2
    assert "no model here yet" in capsys.readouterr().err


# ---- the card ------------------------------------------------------------------------------------


def test_card_before_the_decay(tmp_path):
    """Inside of the second stage, and at its end."""
    for decay_steps, step, row in ((130, 120, "20 of 100"), (50, 200, "100")):
        schedule = {"name": "wsd", "decay_steps": decay_steps}
        folder = write_run(tmp_path / str(step), schedule=schedule)
        (folder / "before_decay").mkdir()
        (folder / "before_decay" / "config.json").write_text(json.dumps(CONFIG))
        (before,) = plan_uploads(RunRecord.read(folder), "a/b")
        assert before.revision == "before-decay"
        for text in (
            "# mslt, before the decay\n",
            f"the model at step {step} of 250, before the learning rate falls, not a finished one.",
            f"| 2 | 4 | 2 | {row} | 64 | 8 |",
        ):
            assert text in before.card, text
        assert "| 3 |" not in before.card
        assert ("| 2 | 5." in before.card) == (step == 200), "losses of stages that had ended"


def test_card_tells_what_was_trained(run):
    card = (run / "stages" / "2" / "end" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "transformers" and "license" not in metadata
    assert metadata["mask_token"] == "<mask>"
    assert "\n# license: " in card
    for text in (
        "# mslt, end of stage 2\n",
        "A BERT encoder (4 layers, hidden size 32, 4 heads, vocabulary 500), pretrained by multi-stage",
        "This is the model at the end of stage 2 of 3, not a finished one.",
        "| 2 | 4 | 2 | 100 | 64 | 8 |",
        "learning rate 0.001, weight decay 0.01, schedule `linear`",
        "- Token store of `data.path`: digest `abababababababab`",
        "- Hardware: 2 x CPU",
        "| 1 | 5.857 | 0.610 |",
        "unigram entropy of the training text is 6.250 nats",
        f'AutoModelForPreTraining.from_pretrained("{run}/stages/2/end")',
    ):
        assert text in card, text
    assert "| 3 |" not in card, "what came after the stage isn't this model's"
    assert "# mslt\n" in (run / "model" / "README.md").read_text()


def test_card_before_a_stage_has_the_losses_so_far(run):
    (run / "stages" / "2" / "start").mkdir()
    (run / "stages" / "2" / "start" / "config.json").write_text("{}")
    write_model_card(run, "stages/2/start")
    card = (run / "stages" / "2" / "start" / "README.md").read_text()
    assert "# mslt, start of stage 2" in card
    assert "| 1 | 5.857 | 0.610 |" in card and "5.714" not in card


def test_an_edited_card_is_kept(tmp_path):
    assert write_card(tmp_path, "one\n")
    assert write_card(tmp_path, "two\n"), "what the program wrote it may replace"
    card = tmp_path / "README.md"
    assert is_ours(card.read_text()) and card.read_text().startswith("two\n")
    for edited in (card.read_text().replace("two", "too"), card.read_text() + "more\n", "mine", ""):
        card.write_text(edited)
        assert not write_card(tmp_path, "three\n")
        assert card.read_text() == edited
    assert not is_ours(seal("a\n") + seal("b\n"))
