"""results.json of an evaluation, which `compare`, the report and `push` read. One may be written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mslt_ds.errors import RecipeError
from mslt_ds.evaluation import text_files
from mslt_ds.evaluation.results import METRIC_NAMES, Results

RESULTS = "results.json"


def read_results(output: Path, statistics: Sequence[str] = ("median", "spread")) -> Results:
    """The content of results.json; `output` is the folder or the file itself.

    statistics: those of each column's main metric that have to be there
    """
    path = output / RESULTS if output.is_dir() else output
    if not path.is_file():
        raise RecipeError(
            f"{output}: no {RESULTS} here; it's written when all runs of a grid are finished"
        )
    found = text_files.read_json(path)
    if (problem := _problem(found, statistics)) is not None:
        raise RecipeError(
            f"{path}: {problem}; name the output folder of an evaluation, or write the file as "
            "docs/report.md shows"
        )
    return found


def _problem(found: Any, statistics: Sequence[str]) -> str | None:
    """What is wrong with the content; None: nothing."""
    if not isinstance(found, dict):
        return "not the results of an evaluation"

    def entry(*keys: str) -> Any:
        value = found
        for depth, key in enumerate(keys, start=1):
            if not isinstance(value, dict) or key not in value:
                raise KeyError(".".join(keys[:depth]))
            value = value[key]
        return value

    try:
        for key in ("model", "protocol", "quick"):
            entry(key)
        for task in dict(entry("tasks")):
            entry("tasks", task, "runs")
            for column in dict(entry("tasks", task, "columns")):
                at = ("tasks", task, "columns", column)
                metric = entry(*at, "metric")
                if metric not in METRIC_NAMES:
                    return f"{'.'.join(at)}.metric: {metric}; choose {', '.join(METRIC_NAMES)}"
                for name in statistics:
                    entry(*at, metric, name)
                median = entry(*at, metric, "median")
                if not isinstance(median, int | float) or abs(median) > 1:
                    return f"{'.'.join(at)}.{metric}.median: {median}; it has to be a share, such as 0.85"
    except KeyError as error:
        return f"{error.args[0]} is missing"
    except (TypeError, ValueError):
        return "tasks and columns have to be JSON objects"
    return None
