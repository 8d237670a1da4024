"""What the program warns of is in the run's folder, and printed as before."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from mslt_ds.telemetry.warned import WARNINGS_FILE, add_warning, kept_warnings

SCRIPT = """
import logging, sys
from pathlib import Path
from mslt_ds.telemetry.warned import kept_warnings
with kept_warnings(Path(sys.argv[1])):
    for step in (3, 4):
        logging.getLogger("mslt_ds.data.ahead").warning("no batch for step %d", step)
logging.getLogger("mslt_ds.data.ahead").warning("after the run")
"""


def test_warnings_are_kept_and_printed_once(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stderr.split("\n") == ["no batch for step 3", "no batch for step 4", "after the run", ""]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / WARNINGS_FILE).read_text().splitlines()]
    assert [line["text"] for line in lines] == ["no batch for step 3", "no batch for step 4"]
    assert {line["kind"] for line in lines} == {"no batch for step %d"}


def test_other_ranks_and_failing_disks(tmp_path):
    with kept_warnings(None):
        logging.getLogger("mslt_ds.x").warning("of another rank")
    add_warning(tmp_path / "gone", "nobody reads this")
    assert list(tmp_path.iterdir()) == []
