"""Whether two ways of fine-tuning differ: Welch's test, and the benchmark to its end on a tiny GLUE."""

from __future__ import annotations

import json

import pytest
from scipy import stats

from benchmarks import evaluation, record
from tests.unit.evaluation.conftest import save_model, write_glue

ONE, OTHER = [0.81, 0.84, 0.86, 0.83], [0.80, 0.90, 0.70]


def test_the_comparison_is_welchs():
    found = evaluation.compare({"a": ONE, "b": OTHER})
    test = stats.ttest_ind(ONE, OTHER, equal_var=False)
    difference = found["difference"]
    assert difference["of"] == "a - b"
    assert difference["mean"] == pytest.approx(0.835 - 0.8)
    assert difference["mean"] / difference["standard_error"] == pytest.approx(test.statistic)  # pyright: ignore[reportAttributeAccessIssue]
    assert difference["degrees_of_freedom"] == pytest.approx(test.df)  # pyright: ignore[reportAttributeAccessIssue]
    assert difference["p_value"] == pytest.approx(test.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    assert found["ways"]["b"]["mean"] == pytest.approx(0.8)
    assert found["ways"]["b"]["spread"] == pytest.approx(0.2)
    assert found["ways"]["b"]["standard_deviation"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("shift", "exceeds"), [(0.0, False), (0.01, False), (0.1, True), (-0.1, True)]
)
def test_a_difference_is_held_against_its_error(shift, exceeds):
    found = evaluation.compare({"a": [score + shift for score in ONE], "b": ONE})
    assert found["difference"]["exceeds_standard_error"] is exceeds
    (*_, line) = evaluation.lines_of({"metric": "f1"} | found)
    assert ("which exceeds" in line) is exceeds


def test_scores_without_variance():
    found = evaluation.compare({"a": [0.5, 0.5], "b": [0.5, 0.5]})["difference"]
    assert (found["standard_error"], found["p_value"]) == (0, None)
    assert not found["exceeds_standard_error"]


def test_to_its_end(tmp_path, monkeypatch, capsys):
    model = save_model(tmp_path / "model", max_position_embeddings=128)
    data = write_glue(tmp_path / "glue", train=40, dev=16)
    write = record.write
    monkeypatch.setattr(
        record, "write", lambda *given, **named: write(*given, **named, folder=tmp_path / "out")
    )
    arguments = ["--model", str(model), "--data", str(data), "--task", "CoLA", "--steps", "2"]
    arguments += ["--repeats", "2", "--scores", "2", "--learning-rate", "1e-3", "--write"]
    assert evaluation.main(arguments) == 0
    out = capsys.readouterr().out
    assert "buckets          matthews: mean " in out
    assert "its standard error" in out
    (path,) = (tmp_path / "out").iterdir()
    assert path.name.startswith("evaluation_CoLA_")
    content = json.loads(path.read_text())
    assert content["command"] == ["python", "-m", "benchmarks.evaluation", *arguments]
    assert content["comparison"]["metric"] == "matthews"
    assert [len(runs) for runs in content["scores"].values()] == [2, 2]
    assert content["versions"].keys() == {"python", "torch", "transformers", "torchmetrics"}


def test_one_seed_shows_nothing(capsys):
    with pytest.raises(SystemExit):
        evaluation.main(["--model", "m", "--data", "d", "--scores", "1"])
    assert "--scores: 1; a difference's error takes 2 seeds or more" in capsys.readouterr().err
