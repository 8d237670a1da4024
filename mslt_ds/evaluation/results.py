"""Results of finished cells: the learning rate chosen on dev, medians, tables. All functions are pure.

A task's learning rate is the one with the best median of its main metric over the seeds; for MNLI, of
the matched set. Among equal rates the first is chosen. The spread is the range of the scores at that
rate, largest minus smallest. For five runs its expected value is about 2.3 standard deviations, so a
difference of medians that exceeds it is unlikely to come from the seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

METRIC_NAMES = {
    "matthews": "Matthews",
    "accuracy": "accuracy",
    "f1": "F1",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "exact": "EM",
}

Columns = Mapping[str, Mapping[str, tuple[str, ...]]]
"""The metrics of each column of each task. The first metric is the main one."""
Constants = Mapping[str, Mapping[str, Mapping[str, float]]]
"""The score of the best constant answer by each metric, for each column of each task."""

Results = dict[str, Any]


def summarize(
    cells: Sequence[Mapping[str, Any]], columns: Columns, constants: Constants
) -> dict[str, Any]:
    """Each task's part of results.json.

    cells: the content of cell files, at least one of each task
    constants: see `Constants`; tasks may be missing
    """
    return {
        task: _summarize_task(
            [cell for cell in cells if cell["task"] == task], of_task, constants.get(task, {})
        )
        for task, of_task in columns.items()
    }


def _summarize_task(
    cells: Sequence[Mapping[str, Any]],
    columns: Mapping[str, tuple[str, ...]],
    constants: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    first = next(iter(columns))
    metric = columns[first][0]
    medians = {
        rate: statistics.median(
            cell["scores"][first][metric] for cell in cells if cell["learning_rate"] == rate
        )
        for rate in dict.fromkeys(cell["learning_rate"] for cell in cells)
    }
    best = max(medians, key=lambda rate: medians[rate])
    chosen = [cell for cell in cells if cell["learning_rate"] == best]
    return {
        "learning_rate": best,
        "runs": len(cells),
        "runs_at_learning_rate": len(chosen),
        "train_examples": chosen[0]["train_examples"],
        "median_at_each_learning_rate": {repr(rate): value for rate, value in medians.items()},
        "columns": {
            column: {
                "metric": metrics[0],
                **{
                    name: _statistics(
                        [cell["scores"][column][name] for cell in chosen],
                        constants.get(column, {}).get(name),
                    )
                    for name in metrics
                },
            }
            for column, metrics in columns.items()
        },
    }


def _statistics(scores: list[float], constant: float | None) -> dict[str, Any]:
    return {
        "median": statistics.median(scores),
        "spread": max(scores) - min(scores),
        "scores": scores,
        "one_answer_for_all": constant,
    }


def average(results: Results) -> float:
    """The mean over tasks. A task with two columns (MNLI) counts once, with their mean."""
    return statistics.fmean(
        statistics.fmean(column[column["metric"]]["median"] for column in task["columns"].values())
        for task in results["tasks"].values()
    )


def table(results: Results) -> str:
    """The results as a Markdown table in percent, with a column for each task."""
    columns = _columns(results)
    tasks = results["tasks"]
    rows = [
        ["", *(name for _, name, _ in columns), "average"],
        ["metric", *(METRIC_NAMES[column["metric"]] for *_, column in columns), ""],
        [
            "median",
            *(percent(column[column["metric"]]["median"]) for *_, column in columns),
            percent(average(results)),
        ],
        ["spread", *(percent(column[column["metric"]]["spread"]) for *_, column in columns), ""],
        *_constant_rows([column for *_, column in columns], [""]),
        ["besides", *(_others(column) for *_, column in columns), ""],
        ["best learning rate", *(repr(tasks[task]["learning_rate"]) for task, *_ in columns), ""],
        ["runs", *(str(tasks[task]["runs"]) for task, *_ in columns), ""],
        ["training examples", *(f"{tasks[task]['train_examples']:,}" for task, *_ in columns), ""],
    ]
    return "\n".join([*_heading(results), "", *markdown(rows), "", *_footer(results)]) + "\n"


def shared_tasks(several: Sequence[Results]) -> list[str]:
    """Tasks that all results have, in the order of the first."""
    return [
        task for task in several[0]["tasks"] if all(task in other["tasks"] for other in several)
    ]


def compare(several: Sequence[Results]) -> str:
    """A Markdown table that compares models: medians (spreads), then differences from the first.

    It contains the tasks that all results have; there must be at least one.
    """
    first = several[0]
    names = _short_names(several)
    tasks = shared_tasks(several)
    shared = [(task, name) for task, name, _ in _columns(first) if task in tasks]
    rows = [["model", *(name for _, name in shared)]]
    rows.append(
        ["metric", *(METRIC_NAMES[_column(first, task, name)["metric"]] for task, name in shared)]
    )
    rows += _constant_rows([_column(first, *at) for at in shared], [])
    for name, results in zip(names, several, strict=True):
        rows.append([name, *(_median_and_spread(_column(results, *at)) for at in shared)])
    for name, results in zip(names[1:], several[1:], strict=True):
        rows.append([f"{name} - {names[0]}", *(_difference(first, results, at) for at in shared)])
        rows.append(["exceeds the spread", *(_exceeds(first, results, at) for at in shared)])
    lines = [
        f"{name}: {results['model']}{' (quick grid)' if results['quick'] else ''}"
        for name, results in zip(names, several, strict=True)
    ]
    footer = [
        "Medians (spreads: largest minus smallest score of the seeds), in percent. A difference "
        "exceeds the spread if it's larger than both models' spreads."
    ]
    protocols = {name: results["protocol"] for name, results in zip(names, several, strict=True)}
    if len({str(protocol) for protocol in protocols.values()}) > 1:
        footer += [f"Different recipes: {name}: {text}" for name, text in protocols.items()]
    for name, results in zip(names, several, strict=True):
        if others := [task for task in results["tasks"] if task not in tasks]:
            footer += [f"Not in all of them: {name}: {', '.join(others)}"]
    return "\n".join([*(f"- {line}" for line in lines), "", *markdown(rows), "", *footer]) + "\n"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first row is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _columns(results: Results) -> list[tuple[str, str, dict[str, Any]]]:
    """(task, name, content) of all columns."""
    return [
        (task, name, column)
        for task, content in results["tasks"].items()
        for name, column in content["columns"].items()
    ]


def _column(results: Results, task: str, name: str) -> dict[str, Any]:
    return results["tasks"][task]["columns"][name]


def _main(column: dict[str, Any]) -> dict[str, Any]:
    return column[column["metric"]]


def _constant_rows(columns: Sequence[dict[str, Any]], rest: list[str]) -> list[list[str]]:
    """A row with the scores of the best constant answer, if any column has one."""
    found = [_main(column)["one_answer_for_all"] for column in columns]
    if all(value is None for value in found):
        return []
    cells = ("" if value is None else percent(value) for value in found)
    return [["one answer for all", *cells, *rest]]


def _others(column: dict[str, Any]) -> str:
    return ", ".join(
        f"{METRIC_NAMES[name]} {percent(value['median'])}"
        for name, value in column.items()
        if name not in ("metric", column["metric"])
    )


def _median_and_spread(column: dict[str, Any]) -> str:
    return f"{percent(_main(column)['median'])} ({percent(_main(column)['spread'])})"


def _difference(first: Results, other: Results, at: tuple[str, str]) -> str:
    medians = [_main(_column(results, *at))["median"] for results in (first, other)]
    return f"{100 * (medians[1] - medians[0]):+.1f}"


def _exceeds(first: Results, other: Results, at: tuple[str, str]) -> str:
    """Whether the difference exceeds both spreads; unknown for a single run."""
    columns = [_column(results, *at) for results in (first, other)]
    if any(len(_main(column)["scores"]) < 2 for column in columns):
        return "one run: unknown"
    medians = [_main(column)["median"] for column in columns]
    spread = max(_main(column)["spread"] for column in columns)
    return "yes" if abs(medians[1] - medians[0]) > spread else "no"


def _short_names(several: Sequence[Results]) -> list[str]:
    return [chr(ord("A") + index) for index in range(len(several))]


def _heading(results: Results) -> list[str]:
    devices = ", ".join(f"{name} ({runs} runs)" for name, runs in results["devices"].items())
    lines = [
        f"Model: {results['model']}",
        f"Recipe: {results['protocol']}",
        f"Device: {devices}",
    ]
    if results["quick"]:
        lines.insert(0, "**Quick grid**: fewer runs than the paper's protocol.")
    return [f"{line}  " for line in lines]


def _footer(results: Results) -> list[str]:
    lines = [
        "Scores on dev, in percent: the median over the seeds at the best learning rate. Spread: "
        "the largest minus the smallest of these scores."
    ]
    if _constant_rows([column for *_, column in _columns(results)], []):
        lines += [
            "One answer for all: what the best constant answer scores. A model that has learned "
            "nothing about a task can reach it, above all in F1."
        ]
    if len(results["devices"]) > 1:
        lines += [
            "The runs were made on different devices, where the same seed gives different scores."
        ]
    return lines
