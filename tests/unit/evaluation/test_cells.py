"""A finished cell is whole, belongs to one model, and is held by one process at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mslt_ds.errors import CheckpointError
from mslt_ds.evaluation.cells import CellFolder, fingerprint
from mslt_ds.evaluation.grid import Cell

CELL = Cell("RTE", 2e-5, 3)


def test_written_and_found(tmp_path):
    folder = CellFolder(tmp_path, {"RTE": "a"})
    with folder.claim(CELL) as mine:
        assert mine
        assert folder.find(CELL) is None
        folder.write(CELL, {"scores": {"RTE": {"accuracy": 0.1 + 0.2}}})
    found = folder.find(CELL)
    assert found is not None
    assert found["scores"]["RTE"]["accuracy"] == 0.1 + 0.2  # to the last bit
    assert (found["task"], found["learning_rate"], found["seed"]) == ("RTE", 2e-5, 3)


def test_another_models_cell_is_refused(tmp_path):
    with CellFolder(tmp_path, {"RTE": "a"}).claim(CELL):
        CellFolder(tmp_path, {"RTE": "a"}).write(CELL, {})
    with pytest.raises(CheckpointError, match=r"RTE_2e-05_3.json: made with another model"):
        CellFolder(tmp_path, {"RTE": "b"}).find(CELL)


@pytest.mark.parametrize("damage", ["", "[]", "{}", "[" * 9999, "\0"])
def test_a_damaged_cell_is_named(tmp_path, damage):
    folder = CellFolder(tmp_path, {"RTE": "a"})
    with folder.claim(CELL):
        folder.write(CELL, {})
    (path,) = tmp_path.rglob("RTE_2e-05_3.json")
    path.write_text(damage)
    with pytest.raises(CheckpointError, match=r"RTE_2e-05_3.json: damaged .*remove this file"):
        folder.find(CELL)


def test_a_lock_goes_with_its_process(tmp_path):
    folder = CellFolder(tmp_path, {"RTE": "a"})
    script = (
        "import sys, time; from pathlib import Path\n"
        "from mslt_ds.evaluation.cells import CellFolder; from mslt_ds.evaluation.grid import Cell\n"
        "with CellFolder(Path(sys.argv[1]), {}).claim(Cell('RTE', 2e-5, 3)) as mine:\n"
        "    print(mine, flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with folder.claim(CELL) as mine:
            assert not mine
        with folder.claim(Cell("RTE", 2e-5, 4)) as mine:
            assert mine
        other.kill()
    with folder.claim(CELL) as mine:
        assert mine


def test_fingerprints_tell_values_apart():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
