"""Scores of evaluations in the layout of the paper's tables: a model a row, a task a column.

Source of the paper's training times: Yang et al. 2020, table 1. Its scores aren't repeated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mslt_ds.analysis.comparison import full_twin, joint_stage, run_speed
from mslt_ds.analysis.run_tables import Runs
from mslt_ds.analysis.table import Cell, Table, make_table, number, seconds
from mslt_ds.errors import RecipeError
from mslt_ds.evaluation.glue.tasks import TASKS
from mslt_ds.evaluation.results import METRIC_NAMES, Results, average
from mslt_ds.report.record import RunRecord

_SQUAD = "SQuAD-"
_PAPER_SCORES = " The paper's scores aren't included; docs/report.md tells how to add them."

# Hours on 32 V100: full, progressive stacking (Gong et al. 2019), multi-stage layerwise training.
_PAPER_HOURS = {"BERT-Base": (85, 63, 40), "BERT-Large": (188, 136, 84)}


def glue_table(several: Sequence[Results], runs: Runs) -> Table | None:
    """Medians in percent; None without results."""
    if not several:
        return None
    columns = [
        (task, split.name)
        for task, content in TASKS.items()
        for split in content.dev
        if any(split.name in r["tasks"].get(task, {}).get("columns", {}) for r in several)
    ]
    for results in several:
        if not results["tasks"].keys() & TASKS.keys():
            raise RecipeError(f"--glue: {results['model']}: results of {', '.join(results['tasks'])}, not of GLUE")  # fmt: skip
    metrics = {
        at: METRIC_NAMES[c["metric"]] for at in columns for r in several if (c := _column(r, *at))
    }
    rows = []
    for results in several:
        scores = [_median(_column(results, *at)) for at in columns]
        whole = all(score.value is not None for score in scores)
        rows.append(
            [
                *_head(results, runs),
                *scores,
                _percent(average(results)) if whole else number("", None),
                f"{'quick grid, ' if results['quick'] else ''}{_runs_of(results)} runs",
            ]
        )
    return make_table(
        "glue",
        "GLUE on dev, in percent: the median over the seeds at the best learning rate",
        [
            "model", "training time", "speed-up",
            *(f"{name} ({metrics[task, name]})" for task, name in columns), "average", "grid",
        ],
        rows,
        "For the paper's tables 1, 2 and 5. Average: over tasks; MNLI counts once. A dash: not "
        "evaluated, or no run of this report. " + _protocols(several) + _PAPER_SCORES,
    )  # fmt: skip


def squad_table(several: Sequence[Results], runs: Runs) -> Table | None:
    """EM and F1 in percent, both versions of a model in one row; None without results."""
    if not several:
        return None
    versions: list[str] = []
    by_model: dict[str, dict[str, Results]] = {}
    for results in several:
        found = [task for task in results["tasks"] if task.startswith(_SQUAD)]
        if not found:
            raise RecipeError(f"--squad: {results['model']}: results of {', '.join(results['tasks'])}, not of SQuAD")  # fmt: skip
        versions += found
        by_model.setdefault(results["model"], {}).update(dict.fromkeys(found, results))
    columns = [(task, metric) for task in sorted(set(versions)) for metric in ("exact", "f1")]
    rows = []
    for of_model in by_model.values():
        cells = []
        for task, metric in columns:
            column = _column(of_model[task], task, task) if task in of_model else None
            cells.append(_percent(column[metric]["median"]) if column else number("", None))
        rows.append([*_head(next(iter(of_model.values())), runs), *cells])
    return make_table(
        "squad",
        "SQuAD on dev, in percent",
        [
            "model", "training time", "speed-up",
            *(f"{task.replace(_SQUAD, 'v')} {METRIC_NAMES[metric]}" for task, metric in columns),
        ],
        rows,
        "For the paper's table 3. " + _protocols(several) + _PAPER_SCORES,
    )  # fmt: skip


def paper_hours_table() -> Table:
    """What the paper says of the time, to compare speed-ups with."""
    rows = [
        [
            size,
            *(Cell(value, f"{value} h") for value in hours),
            *(Cell(hours[0] / value, f"{hours[0] / value:.2f}x") for value in hours[1:]),
        ]
        for size, hours in _PAPER_HOURS.items()
    ]
    return make_table(
        "paper_hours",
        "The paper's training times, to compare with",
        ["model", "full", "stacking", "mslt", "speed-up of stacking", "speed-up of mslt"],
        rows,
        "Source: Yang et al. 2020, table 1, on 32 V100. Speed-ups are quotients of these hours."
        + _PAPER_SCORES,
    )


def _head(results: Results, runs: Runs) -> list[Cell | str]:
    """The model, and the training time and speed-up of its run, if that is one of `runs`."""
    label, run, stage = _run_of(results["model"], runs)
    if run is None or label is None:
        return [Path(results["model"]).name or results["model"], number("", None), number("", None)]
    joint = joint_stage(run)
    if stage is None:
        name = f"{label}{', with joint stage' if joint else ''}"
    else:
        name = f"{label}, after stage {stage}"
        name += " (without joint stage)" if joint == stage + 1 else ""
    taken = sum(run.stage_seconds(index) for index in range(1, (stage or len(run.stages)) + 1))
    speed = run_speed(run, full_twin(run, list(runs.values()))).measured if stage is None else None
    return [name, seconds(taken or None), number("{:.2f}x", speed)]


def _run_of(model: str, runs: Runs) -> tuple[str | None, RunRecord | None, int | None]:
    """The run that a model folder belongs to, and the stage at whose end it was saved; None: the last."""
    path = Path(model).resolve()
    for label, run in runs.items():
        folder = run.path.resolve()
        if path == folder / "model":
            return label, run, None
        for index in range(1, len(run.stages) + 1):
            if path == folder / "stages" / str(index) / "end":
                return label, run, None if index == len(run.stages) else index
    return None, None, None


def _column(results: Results, task: str, name: str) -> dict | None:
    return results["tasks"].get(task, {}).get("columns", {}).get(name)


def _median(column: dict | None) -> Cell:
    return number("", None) if column is None else _percent(column[column["metric"]]["median"])


def _percent(share: float) -> Cell:
    return Cell(share, f"{100 * share:.1f}")


def _runs_of(results: Results) -> int:
    return sum(task["runs"] for task in results["tasks"].values())


def _protocols(several: Sequence[Results]) -> str:
    found = list(dict.fromkeys(results["protocol"] for results in several))
    return f"Recipe: {'; '.join(found)}."
