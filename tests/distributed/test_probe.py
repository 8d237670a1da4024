"""`mslt-ds probe` on a run that has ended: from a stage's model and from a checkpoint."""

from __future__ import annotations

import json

import pytest

from mslt_ds import cli
from mslt_ds.config import strict_yaml
from tests.distributed.conftest import REPOSITORY
from tests.distributed.recipes import recipe

TRAIN = REPOSITORY / "mslt_ds" / "train.py"


@pytest.fixture(scope="module")
def finished(store, module_launch, tmp_path_factory):
    """A run of 2 + 2 layers and a joint stage, with the checkpoint of its first stage's end kept."""
    folder = tmp_path_factory.mktemp("probed")
    content = recipe(
        store, folder, "run", data={"path": str(store), "eval_path": str(store), "seq_length": 32},
        checkpoint={"every_steps": 5, "keep": 9}, evaluation={"instances": 16},
    )  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(strict_yaml.dump(content))
    module_launch(TRAIN, 1, "--config", str(path))
    return folder / "run"


def probe(*arguments: object) -> int:
    return cli.main(["probe", *map(str, arguments)])


def test_the_best_operator_after_some_steps(finished, tmp_path, capsys):
    """Two operators grow the same model and train on the same batches; only the first losses differ
    where they should."""
    code = probe(
        "--checkpoint", finished / "stages/1/end", "--operators", "copy_top,random",
        "--steps", 6, "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    rows = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert {row["operator"] for row in rows} == {"copy_top", "random"}
    assert rows[0]["held_out_loss"] <= rows[1]["held_out_loss"]
    assert rows[0]["first_loss"] != rows[1]["first_loss"]
    printed = capsys.readouterr().out
    assert f"best after 6 steps: {rows[0]['operator']}" in printed
    assert (tmp_path / "out" / "curves.svg").exists()
    for row in rows:
        lines = (tmp_path / "out" / f"{row['operator']}_0.01" / "metrics.jsonl").read_text()
        ends = [json.loads(line) for line in lines.splitlines() if "eval_mlm_loss" in line]
        assert ends[-1]["eval_mlm_loss"] == row["held_out_loss"]
    # Again: nothing is trained twice.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("metrics.jsonl")}
    assert probe(
        "--checkpoint", finished / "checkpoints/step_0000000005", "--operators", "copy_top,random",
        "--steps", 6, "--output", tmp_path / "out",
    ) == 0  # fmt: skip
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # Another question isn't answered by these trials.
    for options, other in (
        (["--checkpoint", finished / "stages/1/start", "--steps", 6], "weights of --checkpoint"),
        (["--checkpoint", finished / "stages/1/end", "--steps", 8], "--steps"),
    ):  # fmt: skip
        wanted = ["--operators", "copy_top", "--output", tmp_path / "out"]
        assert probe(*options, *wanted) != 0
        assert f"another {other}" in capsys.readouterr().err


def test_a_trial_that_diverges_is_told_and_not_trained_again(finished, tmp_path, capsys):
    arguments = [
        "--checkpoint", finished / "stages/1/end", "--operators", "copy_top", "--steps", 60,
        "--learning-rates", "1e30", "--output", tmp_path / "out",
    ]  # fmt: skip
    assert probe(*arguments) == 0
    assert "all diverged" in capsys.readouterr().out
    before = (tmp_path / "out" / "copy_top_1e30.log").stat().st_mtime_ns
    assert probe(*arguments) == 0
    assert (tmp_path / "out" / "copy_top_1e30.log").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--operators", "copy_tip"], "'copy_tip'; choose from copy_top"),
        (["--operators", "copy_top", "--learning-rates", "fast"], "'fast'; expected numbers"),
        (["--operators", "copy_top", "--depth", "2"], "has 2 layers"),
        (["--operators", "copy_all", "--trainable-layers", "2"], "copy_all needs every layer"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(finished, tmp_path, capsys, options, named):
    output = tmp_path / "out"
    arguments = ["--checkpoint", finished / "stages/1/end", "--steps", 4, "--output", output]
    assert probe(*arguments, *options) == 2
    assert named in capsys.readouterr().err
    assert not output.exists()


def test_a_folder_of_no_run_is_named(tmp_path, capsys):
    assert probe("--checkpoint", tmp_path, "--operators", "copy_top", "--steps", 4) == 2
    assert "recipe.yaml" in capsys.readouterr().err
