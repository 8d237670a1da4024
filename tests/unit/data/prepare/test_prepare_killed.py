"""A preparation is killed at thirty random moments; what comes of it is what would have come anyway.

The processes are forked from a server that has everything loaded, so that their life is the
preparation and not the start of Python. A test in test_prepare.py kills the command with its workers.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mslt_ds.data.prepare import command, unit
from tests.forked import CONTEXT
from tests.unit.data.conftest import as_text, docstring_documents
from tests.unit.data.prepare.test_command import store_files

KILLS = 30


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path | str]:
    """Two sources of many units each, one of them with copies and duplicates."""
    documents = docstring_documents(60)
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(as_text(documents), encoding="utf-8")
    second.write_text(as_text(documents[20:] + documents[:20:-1]).upper(), encoding="utf-8")
    return [first, f"{second},weight=1.5"]


def prepare_store(inputs: list[Path | str], output: Path) -> None:
    unit.UNIT_CHARACTERS = 20_000  # in a process of its own
    command.prepare(inputs, output, vocab_size=500, workers=1)


def start(inputs: list[Path | str], output: Path) -> BaseProcess:
    process = CONTEXT.Process(target=prepare_store, args=(inputs, output))
    process.start()
    return process


def finish(inputs: list[Path | str], output: Path) -> float:
    """Seconds it took."""
    began = time.monotonic()
    process = start(inputs, output)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


@pytest.mark.slow
def test_thirty_kills_leave_no_trace(tmp_path: Path, inputs: list[Path | str]):
    finish(inputs, tmp_path / "warm")
    duration = finish(inputs, tmp_path / "whole")
    expected = store_files(tmp_path / "whole")
    moments = random.Random(0)
    output = tmp_path / "killed"
    kills, met_units, met_tokenizer = 0, 0, 0
    # Of each part of the work at least one, however fast the machine is from one moment to the next.
    while kills < KILLS or not met_units or met_tokenizer == kills:
        process = start(inputs, output)
        process.join(moments.uniform(0, duration))
        if process.exitcode is not None:
            assert process.exitcode == 0
            assert store_files(output) == expected
            shutil.rmtree(output)
            duration *= 0.9
            continue
        process.kill()
        process.join()
        kills += 1
        duration *= 1.02
        work = output / "work"
        met_units += any(work.glob("*.unit"))
        met_tokenizer += (work / "tokenizer").exists()
    finish(inputs, output)
    assert store_files(output) == expected
    assert sorted(os.listdir(output)) == sorted(os.listdir(tmp_path / "whole"))
    assert met_units <= met_tokenizer
