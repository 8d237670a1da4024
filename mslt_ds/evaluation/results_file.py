"""results.json of an evaluation, which `compare` and the report read."""

from __future__ import annotations

from pathlib import Path

from mslt_ds.errors import RecipeError
from mslt_ds.evaluation import text_files
from mslt_ds.evaluation.results import Results

RESULTS = "results.json"


def read_results(output: Path) -> Results:
    """The content of results.json; `output` is the folder or the file itself."""
    path = output / RESULTS if output.is_dir() else output
    if not path.is_file():
        raise RecipeError(
            f"{output}: no {RESULTS} here; it's written when all runs of a grid are finished"
        )
    found = text_files.read_json(path)
    if not isinstance(found, dict) or "tasks" not in found:
        raise RecipeError(f"{path}: not the results of an evaluation; name its output folder")
    return found
