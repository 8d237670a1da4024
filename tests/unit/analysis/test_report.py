"""The report's numbers are the run's, its page is whole, and any run folder makes one."""

from __future__ import annotations

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mslt_ds.analysis.comparison import full_twin, joint_stage, plateau, run_speed, stage_speeds
from mslt_ds.analysis.report_command import read_runs
from mslt_ds.analysis.run_tables import faults_table, profile_table
from mslt_ds.analysis.score_tables import glue_table
from mslt_ds.cli import main
from mslt_ds.report.record import RunRecord
from tests.unit.analysis.runs import ENTROPY, results, write_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of three runs with results, made by the command."""
    root = tmp_path_factory.mktemp("report")
    runs = [
        write_run(root / "mslt", resumed_at=60, trust=True),
        write_run(root / "full", "full", step_seconds=0.2),
        write_run(root / "killed", steps=130),
    ]
    plan = json.loads((root / "killed" / "plan.json").read_text())
    (root / "killed" / "plan.json").write_text(json.dumps(plan | {"name": "a < b & c"}))
    glue = results(
        root / "mslt" / "model",
        {"MRPC": {"MRPC": {"f1": 0.87654, "accuracy": 0.8}},
         "MNLI": {"MNLI-m": {"accuracy": 0.81}, "MNLI-mm": {"accuracy": 0.83}}},
    )  # fmt: skip
    without = results(root / "mslt" / "stages" / "2" / "end", {"MRPC": {"MRPC": {"f1": 0.84321}}})
    squad = results("hub/other", {"SQuAD-1.1": {"SQuAD-1.1": {"f1": 0.88, "exact": 0.8123}}})
    for name, content in (("glue", glue), ("without", without), ("squad", squad)):
        (root / name).mkdir()
        (root / name / "results.json").write_text(json.dumps(content))
    command = ["report", *map(str, runs), "--output", str(root / "out"), "--glue", str(root / "glue"),
               "--glue", str(root / "without"), "--squad", str(root / "squad")]  # fmt: skip
    assert main(command) == 0
    return root


def rows(folder, name: str) -> list[dict[str, str]]:
    with (folder / "out" / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_losses_and_times_are_those_of_the_lines(folder):
    lines = [json.loads(line) for line in (folder / "mslt" / "metrics.jsonl").read_text().splitlines()]  # fmt: skip
    ends = {line["stage"]: line for line in lines if line.get("event") == "stage_end"}
    stages = [row for row in rows(folder, "stages") if row["run"] == "mslt"]
    speed = [row for row in rows(folder, "speed") if row["run"] == "mslt"]
    assert len(stages) == len(speed) == 3
    for row, fast in zip(stages, speed, strict=True):
        end = ends[int(row["stage"])]
        assert float(row["held-out MLM (nats)"]) == end["eval_mlm_loss"]
        assert float(row["held-out NSP (nats)"]) == end["eval_nsp_loss"]
        assert float(fast["median step"]) == end["median_step_seconds"]
        of_stage = [line for line in lines if line.get("stage") == end["stage"] and "event" not in line]  # fmt: skip
        assert float(fast["memory"]) == max(line["memory_peak"] for line in of_stage)
        assert float(fast["elements reduced"]) == of_stage[0]["elements_reduced"]
        assert float(fast["tokens/s"]) == of_stage[0]["sequences_per_second"] * 64
    (run,) = [row for row in rows(folder, "runs") if row["run"] == "mslt"]
    assert float(run["held-out MLM (nats)"]) == ends[3]["eval_mlm_loss"]
    joint = next(row for row in rows(folder, "joint_stage") if row["run"] == "mslt")
    assert float(joint["without (nats)"]) == ends[2]["eval_mlm_loss"]
    assert float(joint["with (nats)"]) == ends[3]["eval_mlm_loss"]


def test_page_shows_the_same_numbers(folder):
    html = (folder / "out" / "index.html").read_text()
    for row in rows(folder, "stages"):
        if row["held-out MLM (nats)"]:
            assert f"<td>{float(row['held-out MLM (nats)']):.3f}</td>" in html
    assert "87.7" in html and "84.8" in html, "MRPC, and the average, in which MNLI counts once"


def test_every_table_and_figure_is_a_file_too(folder):
    out = folder / "out"
    names = {path.stem for path in (out / "tables").glob("*.csv")}
    assert names == {path.stem for path in (out / "tables").glob("*.md")}
    assert names >= {"runs", "stages", "speed", "glue", "squad", "faults", "provenance", "recipe"}
    figures = {path.stem for path in (out / "figures").glob("*.svg")}
    assert figures == {path.stem for path in (out / "figures").glob("*.png")}
    assert figures >= {"loss_over_steps", "loss_over_hours", "speed_ups", "trust_ratios_mslt"}
    for path in (out / "figures").glob("*.svg"):
        ET.parse(path)
    for path in (out / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


class Page(HTMLParser):
    """What is checked of the page's elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.svgs: list[dict] = []
        self.heads = 0
        self.cells_without_scope = 0

    def handle_starttag(self, tag, attrs):
        values = {key: value or "" for key, value in attrs}
        self.loaded += [values[key] for key in ("src", "href", "xlink:href") if values.get(key)]
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "svg":
            self.svgs.append(values)
        if tag == "th":
            self.heads += 1
            self.cells_without_scope += values.get("scope") not in ("col", "row")


def test_page_is_self_contained_and_accessible(folder):
    html = (folder / "out" / "index.html").read_text()
    page = Page()
    page.feed(html)
    assert [url for url in page.loaded if not url.startswith(("#", "data:"))] == []
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids)), "ids of figures mustn't meet"
    assert page.svgs and all(svg["role"] == "img" and svg["aria-label"] for svg in page.svgs)
    assert page.heads and not page.cells_without_scope
    assert "a &lt; b &amp; c" in html and "a < b" not in html
    assert not re.search(r"#(1f2430|586070|1d5fa8)\b", html[html.index("<body>") :]), (
        "theme colours"
    )


def test_faults_tell_the_resume(folder):
    row, killed = rows(folder, "faults")
    assert (killed["run"], killed["step"]) == ("a < b & c", "130")
    assert "may have been killed" in killed["what"]
    assert (row["run"], row["step"]) == ("mslt", "60")
    assert "went on" in row["what"]


def test_faults_tell_warnings_once_for_each_kind(tmp_path):
    run = write_run(tmp_path / "run")
    at = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    second = [line for line in at if "event" not in line][1]
    lines = [
        {"time": second["time"] + wait, "text": f"waited {wait} s", "kind": "waited %d s"}
        for wait in (0, 60)
    ]
    lines.append({"time": 0.0, "text": "a recipe", "kind": "a recipe"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "warnings.jsonl").write_text(text + '{"cut')
    rows = [[cell.text for cell in row[1:]] for row in faults_table(read_runs([run])).rows]
    assert rows == [
        [str(second["step"]), "2 warnings of this kind, the first: waited 0 s"],
        ["0", "warning: a recipe"],
    ]


def test_glue_names_the_run_and_what_lacks_its_joint_stage(folder):
    with_joint, without = rows(folder, "glue")
    assert with_joint["model"] == "mslt, with joint stage"
    assert without["model"] == "mslt, after stage 2 (without joint stage)"
    assert float(with_joint["MRPC (F1)"]) == 0.87654
    assert float(with_joint["average"]) == pytest.approx((0.87654 + 0.82) / 2)
    assert without["average"] == "" and without["MNLI-m (accuracy)"] == ""
    (squad,) = rows(folder, "squad")
    assert (squad["model"], squad["v1.1 EM"], squad["v1.1 F1"]) == ("other", "0.8123", "0.88")


@pytest.mark.parametrize("option", ["--glue", "--squad"])
def test_results_of_something_else_are_refused(folder, option, capsys):
    other = "squad" if option == "--glue" else "glue"
    command = ["report", str(folder / "mslt"), "--output", str(folder / "no"), option]
    assert main([*command, str(folder / other)]) == 2
    assert f"error: {option}: " in capsys.readouterr().err


def test_what_is_no_run_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "plan.json: no such file" in capsys.readouterr().err
    run = str(write_run(tmp_path / "run"))
    assert main(["report", run, run, "--output", str(tmp_path / "out")]) == 2
    assert "given twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    assert main(["report", run, "--output", str(tmp_path / "file" / "out")]) == 3


def test_profiled_steps_and_no_fault(folder, tmp_path):
    shutil.copytree(folder / "killed", tmp_path / "run")
    profile = {"event": "profile", "step": 129, "time": 1.6e9, "stage": 2, "step_seconds": 0.5, "parts": {"backward": 0.3, "other": 0.2}}  # fmt: skip
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(profile) + "\n")
    runs = read_runs([tmp_path / "run"])
    table = profile_table(runs)
    assert table is not None
    assert [cell.text for cell in table.rows[0]][1:] == ["2", "0.5 s", "60%", "40%"]
    assert profile_table(read_runs([folder / "mslt"])) is None
    assert [row[2].text for row in faults_table(runs).rows] == [
        "no line since; it may have been killed"
    ]


def test_files_of_an_older_version(tmp_path):
    """Without starts.jsonl, recipe, most keys of the plan, and any time of steps."""
    run = write_run(tmp_path / "run", steps=130)
    (run / "recipe.yaml").unlink()
    plan = json.loads((run / "plan.json").read_text())
    keep = (
        "depth",
        "trainable_layers",
        "frozen_layers",
        "steps",
        "seq_length",
        "global_batch_size",
    )
    plan = {"stages": [{key: stage[key] for key in keep} for stage in plan["stages"]]}
    (run / "plan.json").write_text(json.dumps(plan))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [
        {k: v for k, v in line.items() if k in ("event", "step", "stage", "loss", "eval_mlm_loss")}
        for line in lines
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"step": 1')
    assert main(["report", str(run), "--output", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "index.html").read_text()
    assert "130 of 250" in html
    assert "loss_over_steps-wide" in html


def test_a_run_that_has_only_begun(tmp_path):
    run = write_run(tmp_path / "run", steps=0)
    assert main(["report", str(run), "--output", str(tmp_path / "out")]) == 0
    assert "0 of 250" in (tmp_path / "out" / "index.html").read_text()


# ---- comparison ----------------------------------------------------------------------------------


def read(*folders) -> list[RunRecord]:
    return [RunRecord.read(folder) for folder in folders]


def test_speed_ups_against_the_full_twin(folder):
    mslt, full = read(folder / "mslt", folder / "full")
    assert full_twin(mslt, [mslt, full]) is full
    # The twin's steps take twice the time that the same arithmetic takes in the other run.
    speeds = stage_speeds(mslt, full)
    assert [speed.ideal for speed in speeds] == pytest.approx([12 / 6, 12 / 8, 1])
    assert [speed.measured for speed in speeds] == pytest.approx([4.0, 3.0, 2.0])
    whole = run_speed(mslt, full)
    seconds = 100 / 4 + 100 / 3 + 50 / 2
    assert whole.measured == pytest.approx(250 / seconds)
    assert whole.ideal == pytest.approx(250 * 12 / (100 * 6 + 100 * 8 + 50 * 12))
    assert [s.measured for s in stage_speeds(mslt, None)] == pytest.approx([2, 1.5, 1])


def test_a_run_of_another_size_is_no_twin(tmp_path, folder):
    (mslt,) = read(folder / "mslt")
    model = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4}
    (other,) = read(write_run(tmp_path / "run", "full", model=model))
    assert full_twin(mslt, [other]) is None


def test_plateau_is_left_where_the_median_falls_far_enough(folder):
    (run,) = read(folder / "mslt")
    state = plateau(run)
    assert state is not None and state.entropy == ENTROPY
    # The loss is ENTROPY - 2 + 4 exp(-step / 60): at the entropy + 0.1 at step 39, 1 below at 83.
    assert state.reached == 39
    assert state.left == 89
    assert state.left_seconds == pytest.approx(90 * 0.2)
    assert joint_stage(run) == 3


def test_runs_of_one_name_are_told_apart(tmp_path):
    write_run(tmp_path / "a" / "run", name="same")
    write_run(tmp_path / "b" / "run", name="same")
    assert list(read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])) == ["a/same", "b/same"]


# ---- scores from a file that is written by hand --------------------------------------------------


def hand_written(page: str) -> dict:
    return json.loads(page.split("```json\n")[1].split("```")[0])


def test_scores_of_a_paper_are_a_row(folder, tmp_path):
    content = hand_written((ROOT / "docs" / "report.md").read_text())
    (tmp_path / "paper.json").write_text(json.dumps(content))
    command = ["report", str(folder / "mslt"), "--output", str(tmp_path / "out"), "--glue", str(folder / "glue")]  # fmt: skip
    assert main([*command, str(tmp_path / "paper.json")]) == 0
    with (tmp_path / "out" / "tables" / "glue.csv").open() as file:
        own, paper = csv.DictReader(file)
    assert own["model"] == "mslt, with joint stage"
    assert paper["model"] == "Yang et al. 2020, BERT-Base, mslt" and paper["training time"] == ""
    assert float(paper["average"]) == float(paper["MNLI-mm (accuracy)"]) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": None}, "protocol is missing"),
        ({"tasks": 5}, "tasks and columns have to be JSON objects"),
        ({"tasks": {"MRPC": {"runs": 5}}}, "tasks.MRPC.columns is missing"),
        ({"tasks": {"MRPC": {"runs": 5, "columns": {"MRPC": {"metric": "F1"}}}}}, "metric: F1; choose matthews, "),
        ({"tasks": {"MRPC": {"runs": 5, "columns": {"MRPC": {"metric": "f1", "f1": 0.5}}}}}, "MRPC.f1.median is missing"),
        ({"tasks": {"MRPC": {"runs": 5, "columns": {"MRPC": {"metric": "f1", "f1": {"median": 88.9}}}}}}, "it has to be a share"),
    ],
)  # fmt: skip
def test_mistakes_in_such_a_file_are_named(folder, tmp_path, change, message, capsys):
    content = hand_written((ROOT / "docs" / "report.md").read_text()) | change
    path = tmp_path / "paper.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    command = ["report", str(folder / "mslt"), "--output", str(tmp_path / "out"), "--glue", str(path)]  # fmt: skip
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"error: {path}: " in error and message in error and "docs/report.md" in error
    assert not (tmp_path / "out").exists()


def test_the_last_stages_end_is_the_finished_model(folder, tmp_path):
    content = results(folder / "mslt" / "stages" / "3" / "end", {"RTE": {"RTE": {"accuracy": 0.5}}})
    table = glue_table([content], read_runs([folder / "mslt"]))
    assert table is not None
    assert [cell.text for cell in table.rows[0]][:3] == [
        "mslt, with joint stage",
        "1 min 07 s",
        "1.50x",
    ]
