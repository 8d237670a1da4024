"""The smallest experiment, from its text to its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def evidence(command: str, output: Path, *options: str) -> str:
    """What the command prints."""
    scale = [] if command == "show" else ["--scale", "tiny"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.evidence", command, *scale, "--output", str(output), *options],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_text_to_tables_with_a_stop_in_between(tmp_path: Path):
    folder = tmp_path / "tiny"
    # Two that begin at once, and are stopped.
    with ThreadPoolExecutor() as pool:
        starts = [
            pool.submit(evidence, "run", folder, "--shard", f"{i}/2", "--hours", "0.0005")
            for i in (1, 2)
        ]
    for start in starts:
        assert "the same command goes on" in start.result()
    assert sum("documents" in start.result() for start in starts) == 1  # one prepared the text
    assert "stopped in" in evidence("run", folder, "--hours", "0.001")
    assert evidence("run", folder).endswith("as far as the results so far decide: 0\n")
    cells = {path: json.loads(path.read_text()) for path in (folder / "cells").rglob("*.json")}
    small = [c["cell"] for c in cells.values() if c["cell"]["budget"] == 40]
    rates = {(c["method"], c["learning_rate"]) for c in small if c["method"] in ("full", "mslt")}
    # The tuned rates lie between two others, so there are two checks for each; a variant, a final.
    assert len(rates) >= 2 * 3
    assert len(cells) == len(rates) + 2 + 4 + 1 + 1
    flops = {c["cell"]["budget"]: [] for c in cells.values()}
    for cell in cells.values():
        flops[cell["cell"]["budget"]].append(cell["flops"])
    for budget in flops.values():
        assert min(budget) > 0.9 * max(budget)
    # A cell that is trained again has the same weights, and keeps its run.
    assert "equal weights" in evidence("again", folder, "--cells", "mslt_random/80/*")
    assert len(list((folder / "again").glob("mslt_random_80_*/model"))) == 1
    assert evidence("show", tmp_path).count("finals: 1 of 1 cells") == 1  # a folder of such folders
    shown = evidence("show", folder)
    assert "finals: 1 of 1 cells" in shown
    written = {path.stem for path in (folder / "tables").glob("*.md")}
    assert written == {"budgets", "reached", "rates", "check", "variants"}
    assert "<table" in (folder / "index.html").read_text()
