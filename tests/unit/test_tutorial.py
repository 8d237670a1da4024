"""The tutorial's commands run as they stand, from raw text to a scored model and its report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_tutorial(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8
    # A checkout's files under another folder, in which nothing but the tutorial writes.
    for name in ("demo", "mslt_ds"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    work = tmp_path / "work"
    assert "| median | " in (work / "results" / "table.md").read_text()
    for written in ("report/index.html", "attention/heads.csv", "runs/tiny/model/README.md"):
        assert (work / written).is_file()
    assert "[MASK]: [" in done.stdout
    assert "somebody/tiny, revision main" in done.stdout
