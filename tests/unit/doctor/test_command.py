"""The command in one process: what it prints, and its exit code."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from mslt_ds import cli
from mslt_ds.doctor import page
from mslt_ds.doctor.judge import judge
from tests.unit.doctor.test_judge import facts, with_rank


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def test_json_has_facts_and_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--path", str(tmp_path), "--megabytes", "1", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["facts"]["ranks"][0]["host"]
    assert document["facts"]["disk"]["bytes_written"] == 1 << 20
    problems = [f for f in document["findings"] if f["level"] == "problem"]
    assert code == (3 if problems else 0)


def test_a_problem_is_printed_with_its_remedy_and_ends_in_code_3(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = cli.main(["doctor", "--path", "/proc/runs", "--megabytes", "1"])
    printed = capsys.readouterr().out
    assert code == 3
    assert "problem: disk: /proc/runs: " in printed
    assert "give a folder that can be written to" in printed


@pytest.mark.parametrize("option", [["--megabytes", "0"], ["--timeout", "soon"]])
def test_bad_options_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["doctor", *option])
    assert f"{option[1]!r} is not a whole number above 0" in capsys.readouterr().err


def test_the_page_of_a_cluster() -> None:
    sick = with_rank(7, shm_bytes=64 << 20)
    with Console(record=True, width=120, quiet=False, file=io.StringIO()) as console:
        page.show(sick, judge(sick), console)
    text = console.export_text()
    assert "nccl all-reduce of 64 MiB" in text and "gpu00 (rank 0) - gpu01 (rank 8)" in text
    assert text.count("cuda:7") == 4
    assert "problem: shared memory: rank 7 (gpu00): /dev/shm has 64 MiB" in text
    assert "Nothing found" not in text
    page.show(facts(), (), console)
    assert "Nothing found that stops a run" in console.export_text()
