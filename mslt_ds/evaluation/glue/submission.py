"""The zip of predictions for GLUE's test server.

Source: the server's FAQ, number 1, as implemented by nyu-mll/jiant (the toolkit of GLUE's authors) in
`jiant/scripts/benchmarks/benchmarks.py`: one TSV for each test set at the top of the zip, named as
below, with the header `index<TAB>prediction`; class names for MNLI, QNLI, RTE and AX, 0 and 1 for the
others, scores from 0 to 5 for STS-B (clipped as in nyu-mll/GLUE-baselines, `src/evaluate.py`). It
rejects a zip that lacks a file. WNLI's file holds the majority class 0 for every row, as in Devlin et
al. 2019, appendix B.1.

Predictions come from the best run at the chosen learning rate. Cells don't keep their weights, so this
run is fine-tuned again with its seed, which gives bit-identical weights on a CPU.
"""

from __future__ import annotations

import fcntl
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mslt_ds.atomic import replace_text
from mslt_ds.evaluation.cells import damaged, fingerprint
from mslt_ds.evaluation.glue.examples import Examples
from mslt_ds.evaluation.glue.runs import GlueRunner, Source
from mslt_ds.evaluation.glue.tasks import DIAGNOSTIC, TASKS, Task
from mslt_ds.evaluation.grid import Cell
from mslt_ds.evaluation.progress import GridProgress
from mslt_ds.evaluation.results import Results
from mslt_ds.json_object import read_object

ZIP = "submission.zip"
FOLDER = "test"
WNLI_ROWS = 146
FILES = (
    "CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX",
)  # fmt: skip
"""The files that the server expects, without `.tsv`."""

Tests = Mapping[str, Mapping[str, Examples]]
"""The test sets of each task, by the name of their file."""


def predict_tests(runner: GlueRunner, results: Results, tests: Tests, output: Path) -> None:
    """Predict every test set and write the zip.

    The predictions of each task are kept in a file and made once, under a lock: several processes may
    find the grid finished.
    """
    files: dict[str, str] = {
        "WNLI": _tsv([str(row) for row in range(WNLI_ROWS)], ["0"] * WNLI_ROWS)
    }
    with (output / f".{FOLDER}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with GridProgress(len(tests), len(tests)) as progress:
            for name, splits in tests.items():
                files |= _task_files(runner, results, name, splits, output / FOLDER, progress)
        write_zip(output / ZIP, files)


def best_cell(results: Results, task: str) -> Cell:
    """The run with the best dev score at the task's learning rate; the first of equal ones."""
    chosen = results["tasks"][task]
    column = next(iter(chosen["columns"]))
    metric = chosen["columns"][column]["metric"]
    rate = chosen["learning_rate"]
    cells = [c for c in results["cells"] if c["task"] == task and c["learning_rate"] == rate]
    best = max(cells, key=lambda cell: cell["scores"][column][metric])
    return Cell(task, rate, best["seed"])


def _task_files(
    runner: GlueRunner,
    results: Results,
    name: str,
    splits: Mapping[str, Examples],
    folder: Path,
    progress: GridProgress,
) -> dict[str, str]:
    """The content of the task's TSV files by name."""
    cell = best_cell(results, name)
    mark = fingerprint(
        runner.fingerprints()[name], cell.name, [[s.texts, s.ids] for s in splits.values()]
    )
    path = folder / f"{name}.json"
    if path.is_file():
        try:
            found = read_object(path)
            same, files = found["fingerprint"] == mark, found["files"]
        except (OSError, ValueError, KeyError) as error:
            raise damaged(path, error) from error
        if same:
            progress.end(1, f"{name}  predicted already")
            return files
    task = TASKS[name]
    model, _ = runner.train(cell, lambda share, text: progress.step(cell.name, share, 1, text))
    files = {
        split: _tsv(examples.ids, answers(task, runner.outputs(model, runner.encode(examples))))
        for split, examples in splits.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({"fingerprint": mark, "files": files}, indent=1) + "\n")
    progress.end(1, f"{name}  predicted by {cell.name}")
    return files


def answers(task: Task, outputs: Tensor) -> list[str]:
    """Predictions in the server's format, from (rows, classes) logits or (rows, 1) scores."""
    if task.is_regression:
        return [f"{score:.3f}" for score in outputs.squeeze(-1).clamp(0.0, 5.0).tolist()]
    classes = outputs.argmax(-1).tolist()
    return [task.labels[number] for number in classes]


def write_zip(path: Path, files: Mapping[str, str]) -> None:
    """Write the TSV files into a zip, in the server's order. The same files give the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            if name in files:
                archive.writestr(zipfile.ZipInfo(f"{name}.tsv"), files[name])
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.getvalue())
    partial.replace(path)


def _tsv(ids: Sequence[str], predictions: Sequence[str]) -> str:
    rows = (f"{index}\t{answer}" for index, answer in zip(ids, predictions, strict=True))
    return "\n".join(["index\tprediction", *rows]) + "\n"


def read_tests(source: Source, tasks: Sequence[Task]) -> Tests:
    """The tasks' test sets. DataError if one is missing, except for the diagnostic set."""
    return {task.name: source.read_tests(task) for task in tasks}


def what_is_missing(tests: Tests) -> str | None:
    """A message that names the files that the submission will lack; None if it is complete."""
    there = {name for splits in tests.values() for name in splits} | {"WNLI"}
    missing = [name for name in FILES if name not in there]
    if not missing:
        return None
    remedies = []
    if DIAGNOSTIC.name in missing and "MNLI" in tests:
        remedies.append(f"put {DIAGNOSTIC.file}/{DIAGNOSTIC.file}.tsv beside the tasks for AX")
    if missing != [DIAGNOSTIC.name] or not remedies:
        remedies.append("evaluate all tasks into the same folder, in one command")
    files = ", ".join(f"{name}.tsv" for name in missing)
    return f"{ZIP}: the server wants {files} too; {', and '.join(remedies)}"
