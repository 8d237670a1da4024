"""The command on all tasks of a tiny GLUE: scores, the same bits again, going on, submissions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification

from mslt_ds.cli import main
from mslt_ds.distributed.world import device_name
from mslt_ds.evaluation.glue.submission import FILES, answers
from mslt_ds.evaluation.glue.tasks import TASKS
from tests.unit.evaluation.conftest import ANY, save_any, save_tokenizer, write_glue

SMALL = ["--set", "learning_rates=[2e-3]", "--set", "seeds=[1]", "--set", "max_length=48"]
SMALL += ["--set", "batch_size=8", "--set", "epochs_of={RTE: 3, STS-B: 3}", "--set", "device=cpu"]


def evaluate(model, data, output, *more):
    arguments = ["--model", str(model), "--data", str(data), "--output", str(output)]
    return main(["evaluate", "glue", *arguments, *SMALL, *more])


def cells(output):
    return {path.name: json.loads(path.read_text()) for path in (output / "cells").glob("*.json")}


@pytest.fixture(scope="module")
def evaluated(model_folder, glue_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    assert evaluate(model_folder, glue_folder, output, "--predict-test") == 0
    return output


def test_every_task_is_scored(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    assert list(results["tasks"]) == list(TASKS)
    assert len(results["cells"]) == len(TASKS)
    for name, task in TASKS.items():
        columns = results["tasks"][name]["columns"]
        assert list(columns) == [split.name for split in task.dev]
        for column in columns.values():
            assert set(column) == {"metric", *task.metrics}
            constants = [column[name]["one_answer_for_all"] for name in task.metrics]
            assert all(0 <= value <= 1 for value in constants)
            assert (min(constants) == 0) == ("spearman" in column or "matthews" in column)
    table = (evaluated / "table.md").read_text()
    assert "| MNLI-m | MNLI-mm |" in table
    assert "| one answer for all |" in table
    assert "the paper's, but learning_rates [0.002]" in table


@pytest.fixture(scope="module")
def learned(model_folder, tmp_path_factory):
    """SST-2 with rows enough to learn which words are good ones."""
    data = write_glue(tmp_path_factory.mktemp("more"), train=480, dev=40, test=20)
    output = tmp_path_factory.mktemp("learned")
    more = ("--tasks", "SST-2", "--predict-test", "--set", "epochs=6")
    assert evaluate(model_folder, data, output, *more) == 0
    return data, output


def test_it_learns_what_the_text_tells(learned):
    data, output = learned
    results = json.loads((output / "results.json").read_text())["tasks"]
    assert results["SST-2"]["columns"]["SST-2"]["accuracy"]["median"] > 0.9
    # The predictions for the test set are the fine-tuned model's.
    test = (data / "SST-2" / "test.tsv").read_text().splitlines()[1:]
    gold = [int(any(word in line.split() for word in ("good", "fine", "great"))) for line in test]
    with zipfile.ZipFile(output / "submission.zip") as archive:
        lines = archive.read("SST-2.tsv").decode().splitlines()[1:]
    assert f1_score(gold, [int(line.split("\t")[1]) for line in lines]) > 0.8


def test_the_same_seed_gives_the_same_bits(model_folder, glue_folder, evaluated, tmp_path):
    assert evaluate(model_folder, glue_folder, tmp_path, "--tasks", "STS-B", "MNLI") == 0
    first, second = cells(evaluated), cells(tmp_path)
    assert len(second) == 2
    for name, cell in second.items():
        assert cell["scores"] == first[name]["scores"]
        assert cell["train_loss"] == first[name]["train_loss"]
    assert (
        evaluate(model_folder, glue_folder, tmp_path, "--tasks", "MNLI", "--set", "seeds=[2]") == 0
    )
    losses = {cell["train_loss"] for cell in cells(tmp_path).values() if cell["task"] == "MNLI"}
    assert len(losses) == 2


def test_finished_cells_stay_and_the_grid_can_grow(model_folder, glue_folder, tmp_path, capsys):
    assert evaluate(model_folder, glue_folder, tmp_path, "--tasks", "RTE") == 0
    path = tmp_path / "cells" / "RTE_0.002_1.json"
    before = path.stat().st_mtime_ns
    capsys.readouterr()
    arguments = ("--tasks", "RTE", "--set", "seeds=[1, 2]")
    assert evaluate(model_folder, glue_folder, tmp_path, *arguments) == 0
    assert "1 of 2 runs are finished already" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before
    another = ("--set", "epochs_of.RTE=1")
    assert evaluate(model_folder, glue_folder, tmp_path, *arguments, *another) == 2
    assert "made with another model, recipe or data" in capsys.readouterr().err
    # What concerns RTE alone leaves the others' cells as they are.
    assert evaluate(model_folder, glue_folder, tmp_path, "--tasks", "CoLA") == 0
    assert evaluate(model_folder, glue_folder, tmp_path, "--tasks", "CoLA", *another) == 0


def test_a_cell_tells_where_it_was_made(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    name = device_name(torch.device("cpu"))
    assert results["devices"] == {name: len(TASKS)}
    assert {(cell["device"], cell["threads"]) for cell in results["cells"]} == {(name, 1)}


def test_shards_do_their_part_and_the_last_one_writes(model_folder, glue_folder, tmp_path):
    tasks = ("--tasks", "RTE", "CoLA")
    assert evaluate(model_folder, glue_folder, tmp_path, *tasks, "--shard", "2/2") == 0
    assert len(cells(tmp_path)) == 1
    assert not (tmp_path / "results.json").exists()
    assert evaluate(model_folder, glue_folder, tmp_path, *tasks, "--shard", "1/2") == 0
    assert len(cells(tmp_path)) == 2
    assert (tmp_path / "results.json").exists()


def test_a_plan_trains_nothing(model_folder, glue_folder, tmp_path, capsys):
    assert evaluate(model_folder, glue_folder, tmp_path, "--tasks", "all", "--dry-run") == 0
    out = capsys.readouterr().out
    for name in TASKS:
        epochs = 3
        assert f"| {name} | 1 | 0 | {8 * epochs} |" in out
    assert "8 runs, " in out
    assert "hours" in out
    assert not (tmp_path / "cells").exists()


def test_the_submission(evaluated):
    with zipfile.ZipFile(evaluated / "submission.zip") as archive:
        assert archive.namelist() == [f"{name}.tsv" for name in FILES]
        files = {name: archive.read(f"{name}.tsv").decode().splitlines() for name in FILES}
    for name, lines in files.items():
        assert lines[0] == "index\tprediction"
        rows = [line.split("\t") for line in lines[1:]]
        assert [index for index, _ in rows] == [str(i) for i in range(146 if name == "WNLI" else 8)]
        told = {answer for _, answer in rows}
        if name == "STS-B":
            assert all(0 <= float(answer) <= 5 for answer in told)
        elif name in ("MNLI-m", "MNLI-mm", "AX"):
            assert told <= {"entailment", "neutral", "contradiction"}
        elif name in ("QNLI", "RTE"):
            assert told <= {"entailment", "not_entailment"}
        else:
            assert told <= {"0", "1"}


def test_predictions_are_made_once(model_folder, glue_folder, evaluated, capsys):
    content = (evaluated / "submission.zip").read_bytes()
    assert evaluate(model_folder, glue_folder, evaluated, "--predict-test") == 0
    assert "predicted already" in capsys.readouterr().out
    assert (evaluated / "submission.zip").read_bytes() == content


def test_a_part_of_the_tasks_says_what_the_server_misses(
    model_folder, glue_folder, tmp_path, capsys
):
    assert evaluate(model_folder, glue_folder, tmp_path, "--tasks", "RTE", "--predict-test") == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "the server wants CoLA.tsv, SST-2.tsv" in line]
    assert told == [lines[0], lines[-1]]  # before the work and after it


def test_without_the_diagnostic_set_all_but_its_file_is_predicted(
    model_folder, glue_folder, tmp_path, capsys
):
    data = tmp_path / "data"
    shutil.copytree(glue_folder, data, ignore=shutil.ignore_patterns("diagnostic"))
    output = tmp_path / "out"
    assert evaluate(model_folder, data, output, "--tasks", "MNLI", "--predict-test") == 0
    with zipfile.ZipFile(output / "submission.zip") as archive:
        assert archive.namelist() == ["MNLI-m.tsv", "MNLI-mm.tsv", "WNLI.tsv"]
    assert "put diagnostic/diagnostic.tsv beside the tasks for AX" in capsys.readouterr().out


def test_the_servers_words():
    scores = torch.tensor([[-0.2], [3.14159], [5.5]])
    assert answers(TASKS["STS-B"], scores) == ["0.000", "3.142", "5.000"]
    logits = torch.eye(3)
    assert answers(TASKS["MNLI"], logits) == ["entailment", "neutral", "contradiction"]
    for task in ("QNLI", "RTE"):
        assert answers(TASKS[task], logits[:2, :2]) == ["entailment", "not_entailment"]
    for task in ("CoLA", "SST-2", "MRPC", "QQP"):
        assert answers(TASKS[task], logits[:2, :2]) == ["0", "1"]


def test_two_models_side_by_side(model_folder, glue_folder, tmp_path, capsys):
    for name, seeds in (("a", "[1, 2]"), ("b", "[3, 4]")):
        more = ("--tasks", "RTE", "--set", f"seeds={seeds}")
        assert evaluate(model_folder, glue_folder, tmp_path / name, *more) == 0
    capsys.readouterr()
    assert main(["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "| B - A |" in capsys.readouterr().out
    assert main(["evaluate", "compare", str(tmp_path / "a")]) == 2
    assert main(["evaluate", "compare", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert "no results.json here" in capsys.readouterr().err
    other = tmp_path / "other.json"
    other.write_text("[]")
    assert main(["evaluate", "compare", str(tmp_path / "a"), str(other)]) == 2
    assert "other.json: not the results of an evaluation" in capsys.readouterr().err


def test_models_without_a_task_in_common(model_folder, glue_folder, tmp_path, capsys):
    for name, tasks in (("a", ("RTE",)), ("b", ("CoLA", "MRPC"))):
        assert evaluate(model_folder, glue_folder, tmp_path / name, "--tasks", *tasks) == 0
    capsys.readouterr()
    assert main(["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    told = capsys.readouterr()
    assert "compare: no task is in all of them" in told.err
    assert f"{tmp_path / 'a'}: RTE\n" in told.err
    assert (
        f"{tmp_path / 'b'}: MRPC, CoLA\n" in told.err
        or f"{tmp_path / 'b'}: CoLA, MRPC\n" in told.err
    )
    assert not told.out


def test_a_missing_package_is_named():
    """As where the extra isn't installed: torchmetrics can't be imported."""
    code = (
        "import sys; sys.modules['torchmetrics'] = None; from mslt_ds.cli import main; "
        "sys.exit(main(['evaluate', 'compare', 'a', 'b']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 3
    assert found.stderr == (
        "error: the package torchmetrics is missing; pip install 'mslt-ds[eval]'\n"
    )


@pytest.mark.parametrize(
    "started",
    [
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1"},
    ],
    ids=["torchrun", "srun"],
)
def test_workers_under_a_launcher(
    model_folder, glue_folder, tmp_path, capsys, monkeypatch, started
):
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert evaluate(model_folder, glue_folder, tmp_path, "--workers", "2") == 2
    assert "--workers: 2, but a launcher has started 2 processes" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("family", list(ANY))
def test_any_encoder(family, glue_folder, tmp_path, capsys):
    save_any(tmp_path / "model", family)
    output = tmp_path / "out"
    assert evaluate(tmp_path / "model", glue_folder, output, "--tasks", "MRPC") == 0
    assert "are newly initialized, drawn by each run's seed: classifier." in capsys.readouterr().out


def test_a_head_of_its_own_has_to_fit_all_tasks(model_folder, glue_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    assert evaluate(folder, glue_folder, tmp_path / "o", "--tasks", "CoLA", "--dry-run") == 0
    assert "the folder has a head of its own" in capsys.readouterr().out
    assert (
        evaluate(folder, glue_folder, tmp_path / "o", "--tasks", "CoLA", "MNLI", "--dry-run") == 2
    )
    assert "weights of another shape: classifier.bias (2, not 3)" in capsys.readouterr().err


def test_mistakes_end_before_any_work(model_folder, glue_folder, tmp_path, capsys):
    def fails(*more):
        assert evaluate(model_folder, glue_folder, tmp_path / "o", *more) in (2, 3)
        assert not (tmp_path / "o" / "cells").exists()
        return capsys.readouterr().err

    assert "max_length: 128, but" in fails("--set", "max_length=128")
    assert "max_length: 128, but" in fails("--set", "max_length=128", "--dry-run")
    assert "--tasks: WNLI" in fails("--tasks", "WNLI")
    assert "--shard: '3/2'" in fails("--shard", "3/2")
    assert "--workers: 0" in fails("--workers", "0")
    assert "learning_rate: unknown key" in fails("--set", "learning_rate=1e-5")
