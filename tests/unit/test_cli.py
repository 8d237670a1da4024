"""The command line: answers, exit codes, and no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mslt_ds.cli import main
from mslt_ds.config.strict_yaml import dump
from mslt_ds.data.store import ARRAYS, FORMAT, MANIFEST_KEYS

RECIPE = {
    "name": "run",
    "plan": {"method": "mslt", "num_stages": 4, "steps_per_stage": 20, "joint_steps": 20},
    "data": {"path": "absent"},
    "train": {"global_batch_size": 64, "micro_batch_size": 16},
    "optimizer": {"learning_rate": 1e-3},
}


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(RECIPE))
    return str(path)


def test_plan_json(recipe, capsys):
    assert main(["plan", "--config", recipe, "--json", "--set", "plan.joint_steps=30"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["total_steps"] == 110
    assert len(description["stages"]) == 5
    assert (
        description["stages"][3].items()
        >= {
            "depth": 12,
            "trainable_layers": 3,
            "frozen_layers": 9,
            "trainable_parameters": 22_478_396,
            "total_parameters": 110_106_428,
            "elements_reduced_per_step": 22_478_396,
            "steps": 20,
            "seq_length": 128,
        }.items()
    )


def test_plan_loads_no_torch(recipe):
    program = (
        "import sys; from mslt_ds.cli import main; "
        f"assert main(['plan', '--config', {recipe!r}]) == 0; "
        "assert not {'torch', 'transformers', 'deepspeed'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_plan_table(recipe, capsys):
    assert main(["plan", "--config", recipe]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.split()[:2] == ["4", "12"])
    assert "copy_top" in row and "22.5 M" in row and "20.4%" in row
    assert "30,522 assumed" in out
    assert "joint stage" not in out
    assert main(["plan", "--config", recipe, "--set", "plan.joint_steps=0"]) == 0
    assert "No joint stage" in capsys.readouterr().out
    assert main(["plan", "--config", recipe, "--set", "model.vocab_size=1000"]) == 0
    assert "assumed" not in capsys.readouterr().out


def test_plan_shows_batches_and_masked_shares_where_stages_differ(recipe, capsys):
    sizes = "plan.global_batch_size=[64, 64, 128, 128, 256]"
    command = ["plan", "--config", recipe]
    ramps = ["--set", sizes, "--set", "plan.masked_lm_prob={first: 0.3, last: 0.15}"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "batch" not in out and "masked" not in out
    assert main([*command, *ramps]) == 0
    out = capsys.readouterr().out
    heading = next(line.split() for line in out.splitlines() if "depth" in line)
    assert heading[heading.index("length") :][1:3] == ["batch", "masked"]
    row = next(line.split() for line in out.splitlines() if line.split()[:2] == ["4", "12"])
    assert row[row.index("128") :][1:3] == ["128", "0.1875"]
    for options, batch, masked, first in ((ramps, 256, 0.15, 7680), ([], 64, 0.15, 5120)):
        assert main([*command, "--json", *options]) == 0
        joint = json.loads(capsys.readouterr().out)["stages"][-1]
        assert joint["global_batch_size"] == batch and joint["masked_lm_prob"] == masked
        assert joint["first_instance"] == first
        assert joint["gradient_accumulation_steps"] == batch // 16
        assert joint["tokens"] == 20 * batch * 128


def test_the_vocabulary_is_the_token_stores(recipe, capsys, tmp_path):
    def vocab_size(*options: str) -> int:
        override = f"data.path={tmp_path / 'store'}"
        assert main(["plan", "--config", recipe, "--json", "--set", override, *options]) == 0
        return json.loads(capsys.readouterr().out)["vocab_size"]

    assert vocab_size() == 30_522
    manifest = tmp_path / "store" / "manifest.json"
    manifest.parent.mkdir()
    counts = dict.fromkeys(("num_documents", "num_sentences", "num_tokens"), 1)
    special = dict.fromkeys(("pad", "cls", "sep", "mask"), 0)
    digests = {"digest": "", "vocabulary_digest": "", "checksums": dict.fromkeys(ARRAYS, "")}
    manifest.write_text(
        json.dumps(
            dict.fromkeys(MANIFEST_KEYS)
            | {"format": FORMAT, "vocab_size": 8000, "special_tokens": special, **counts, **digests}
        )
    )
    assert vocab_size() == 8000
    assert vocab_size("--set", "model.vocab_size=8064") == 8064
    manifest.write_text("{")
    assert main(["plan", "--config", recipe, "--set", f"data.path={manifest.parent}"]) == 2
    assert str(manifest) in capsys.readouterr().err


def test_world_size_comes_from_the_option_or_the_environment(recipe, capsys, monkeypatch):
    def world_size(*options: str) -> int:
        assert main(["plan", "--config", recipe, "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["world_size"]

    assert world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world_size() == 4
    assert world_size("--world-size", "2") == 2
    assert main(["plan", "--config", recipe, "--world-size", "3"]) == 2
    assert "error: train.global_batch_size: 64" in capsys.readouterr().err
    for text in ("0", "two", "-1", ""):
        monkeypatch.setenv("WORLD_SIZE", text)
        assert main(["plan", "--config", recipe]) == 2
        assert f"error: WORLD_SIZE: {text}" in capsys.readouterr().err


def test_mistakes_are_lines_and_exit_code_2(recipe, capsys):
    overrides = ["--set", "plan.num_stages=5", "--set", "schedule.power=2"]
    assert main(["plan", "--config", recipe, *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("error: schedule.power: 2.0, ")
    assert second.startswith("error: plan.num_stages: 5 does not divide ")


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("prepare", "plan", "train"))
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2


def test_train_is_handed_its_arguments(recipe):
    """In a process of its own: from its end on, training ignores the signals that would stop it."""
    for options, told in (
        (["missing.yaml"], "missing.yaml"),
        ([recipe, "--set", "train.seed=many"], "train.seed"),
    ):
        command = [sys.executable, "-m", "mslt_ds.cli", "train", "--config", *options]
        finished = subprocess.run(command, capture_output=True, text=True)
        assert finished.returncode == 2
        assert told in finished.stderr


def test_plan_needs_no_torch(recipe):
    code = (
        "import sys; from mslt_ds.cli import main; "
        f"code = main(['plan', '--config', {recipe!r}]); "
        "heavy = {'torch', 'deepspeed', 'transformers'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_no_mistake(recipe, options):
    """As `mslt-ds plan | head -1`."""
    reads, writes = os.pipe()
    os.close(reads)
    ended = subprocess.run(
        [sys.executable, "-m", "mslt_ds.cli", "plan", "--config", recipe, *options],
        stdout=writes, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writes)
    assert (ended.returncode, ended.stderr) == (1, "")
