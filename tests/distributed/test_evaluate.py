"""A grid that is killed, shared and started twice: real processes, the scores of an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.conftest import REPOSITORY
from tests.unit.evaluation.conftest import save_model, write_glue

CLI = REPOSITORY / "mslt_ds" / "cli.py"
CELLS = 4  # of the grid below


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("evaluate")
    return save_model(folder / "model"), write_glue(folder / "glue", train=120, dev=40)


def arguments(files: tuple[Path, Path], output: Path, *more: str) -> list[str]:
    model, data = files
    return [
        "evaluate", "glue", "--model", str(model), "--data", str(data), "--output", str(output),
        "--tasks", "RTE", "CoLA", "--set", "seeds=[1, 2]", "--set", "learning_rates=[1e-3]",
        "--set", "batch_size=8", "--set", "max_length=48", "--set", "device=cpu", *more,
    ]  # fmt: skip


def scores(output: Path) -> dict[str, dict]:
    """Every cell's scores and loss: what has to be equal to the last bit."""
    cells = [json.loads(path.read_text()) for path in (output / "cells").glob("*.json")]
    return {
        f"{cell['task']} {cell['seed']}": {"scores": cell["scores"], "loss": cell["train_loss"]}
        for cell in cells
    }


@pytest.fixture(scope="module")
def undisturbed(files, module_launch, tmp_path_factory) -> dict[str, dict]:
    output = tmp_path_factory.mktemp("undisturbed")
    module_launch(CLI, 1, *arguments(files, output))
    found = scores(output)
    assert len(found) == CELLS
    return found


def test_killed_and_started_again(files, undisturbed, tmp_path, launch) -> None:
    cells = tmp_path / "cells"
    launch(
        CLI, 1, *arguments(files, tmp_path), until=lambda: any(cells.glob("*.json")), check=False
    )
    done = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 0 < len(done) < CELLS
    output = launch(CLI, 1, *arguments(files, tmp_path)).output
    assert f"{len(done)} of {CELLS} runs are finished already" in output
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert scores(tmp_path) == undisturbed
    assert (tmp_path / "table.md").exists()


def test_workers_share_the_cells(files, undisturbed, tmp_path, launch) -> None:
    output = launch(CLI, 1, *arguments(files, tmp_path, "--workers", "2")).output
    assert scores(tmp_path) == undisturbed
    assert "run 4/4" in output
    assert (tmp_path / "results.json").exists()
    lines = [(tmp_path / "logs" / f"worker_{number}.log").read_text() for number in (1, 2)]
    for task, seed in (("RTE", 1), ("RTE", 2), ("CoLA", 1), ("CoLA", 2)):
        name = f"{task}_0.001_{seed}  {task} "  # the line of a cell's end
        assert sum(text.count(name) for text in lines) == 1


def test_a_worker_that_fails_is_named(files, tmp_path, launch) -> None:
    wrong = arguments(files, tmp_path, "--workers", "2", "--set", "learning_rates=[1e30]")
    ended = launch(CLI, 1, *wrong, check=False)
    assert ended.returncode == 1
    assert "error: worker 1 ended with exit code 4; see" in ended.output
    assert "take it out of learning_rates" in (tmp_path / "logs" / "worker_1.log").read_text()


def test_ranks_of_a_launcher_deal_the_cells_out(files, undisturbed, tmp_path, launch) -> None:
    launch(CLI, 2, *arguments(files, tmp_path))
    assert scores(tmp_path) == undisturbed
    assert (tmp_path / "results.json").exists()
