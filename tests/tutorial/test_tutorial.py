"""The tutorials' commands run as they stand, from raw text to a scored model and its report, and from a model
that exists to a better one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def run_page(name: str, num_blocks: int, tmp_path: Path) -> str:
    """Run the commands of a page in an empty folder; what they print."""
    page = (ROOT / "docs" / name).read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == num_blocks
    # A checkout's files under another folder, in which nothing but the tutorial writes.
    for name in ("demo", "mslt_ds"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = tmp_path / "output.txt"
    with log.open("w") as file:  # not a pipe: its words are wanted after a timeout too
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", "set -x\n" + "\n".join(blocks)],
            cwd=tmp_path,
            env=os.environ
            | {
                "PATH": path,
                "PYTHONPATH": str(ROOT),
                "HF_HUB_OFFLINE": "1",
                "PYTHONFAULTHANDLER": "1",
            },
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait(timeout=1000)
        except subprocess.TimeoutExpired:
            code = "none within 1,000 s"
            for child in psutil.Process(process.pid).children(recursive=True):
                child.send_signal(signal.SIGABRT)  # it prints the stacks of its threads
            time.sleep(2)
        finally:
            process.kill()
            process.wait()
    output = log.read_text()
    assert code == 0, f"exit code {code}\n{output[-4000:]}"
    return output


@pytest.mark.slow
def test_tutorial(tmp_path: Path) -> None:
    output = run_page("tutorial.md", 8, tmp_path)
    work = tmp_path / "work"
    assert "| median | " in (work / "results" / "table.md").read_text()
    for written in ("report/index.html", "attention/heads.csv", "runs/tiny/model/README.md"):
        assert (work / written).is_file()
    assert "[MASK]: [" in output
    assert "somebody/tiny, revision main" in output


@pytest.mark.slow
def test_continuing(tmp_path: Path) -> None:
    output = run_page("continue.md", 4, tmp_path)
    before, after = (
        json.loads((tmp_path / "work" / "results" / name / "mlm.json").read_text())["all"]
        for name in ("published", "continued")
    )
    assert after["predictions"] == before["predictions"]
    assert after["loss"] < before["loss"] - 0.1
    assert "plan.new_vocabulary: of 2,000 tokens, " in output
    card = (tmp_path / "work/runs/continued/before_decay/README.md").read_text()
    assert "at step 60 of 80, before the learning rate falls, not a finished one" in card
    assert "| 2 | 6 | 6 | 20 of 40 | 32 | 16 |" in card
    (checkpoint,) = (tmp_path / "work/runs/continued/checkpoints").glob("step_*60")
    assert checkpoint.is_dir()
