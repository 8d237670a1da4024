"""The doctor under srun: two tasks on two nodes, by the script that users submit."""

from __future__ import annotations

import json

import pytest

from tests.slurm.conftest import Jobs
from tests.slurm.sandbox import NODES
from tests.slurm.test_training import TWO_NODES

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_two_nodes_are_examined_together(jobs: Jobs) -> None:
    job = jobs.submit(
        *TWO_NODES, "slurm/doctor.sh", "--megabytes", "4", "--json", MSLT_OUTPUT=str(jobs.folder)
    )
    assert jobs.wait(job) == "COMPLETED", jobs.log(job)
    # srun labels every line with its task.
    lines = [line[3:] for line in jobs.log(job).splitlines() if line.startswith("0: ")]
    document = json.loads("\n".join(lines[lines.index("{") :]))
    facts = document["facts"]
    assert [rank["host"] for rank in facts["ranks"]] == list(NODES)
    assert facts["backend"] == "gloo" and facts["file_seen_by"] == [True, True]
    assert [reduce["num_bytes"] for reduce in facts["all_reduces"]] == [4096, 1 << 20, 4 << 20]
    assert [(link["source"], link["target"]) for link in facts["links"]] == [(0, 1)]
    assert facts["ranks"][1]["slurm"]["SLURM_PROCID"] == "1"
    assert [finding for finding in document["findings"] if finding["level"] == "problem"] == []
