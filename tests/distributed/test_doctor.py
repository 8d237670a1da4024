"""The doctor on several processes of one machine, and alone where there should be others."""

from __future__ import annotations

import json


def test_ranks_are_examined_together(launch, tmp_path) -> None:
    run = launch(
        "--module", 3, "mslt_ds.doctor.command", "--json", "--megabytes", "1", "--path", str(tmp_path),
        launcher="torchrun",
    )  # fmt: skip
    document = json.loads(run.output[run.output.index("{\n") : run.output.rindex("}") + 1])
    facts = document["facts"]
    assert [rank["rank"] for rank in facts["ranks"]] == [0, 1, 2]
    assert [(link["source"], link["target"]) for link in facts["links"]] == [(0, 1), (1, 2), (2, 0)]
    assert all(link["bytes_per_second"] > 0 for link in facts["links"])
    # One machine has one clock; reading it takes time.
    assert max(map(abs, facts["clock_offsets"])) < 0.1
    assert list(tmp_path.glob(".doctor*")) == []


def test_a_rank_whose_partner_never_comes_says_where_it_looked(launch, tmp_path) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    script = tmp_path / "alone.py"
    script.write_text(
        "import os, sys\n"
        f"os.environ |= {environment!r}\n"
        "from mslt_ds.cli import main\n"
        "sys.exit(main(['doctor', '--timeout', '3']))\n"
    )
    ended = launch(script, 1, launcher="environment", check=False)
    assert ended.returncode == 3, ended.output
    assert (
        "rank 1 of 2 on " in ended.output and "can't meet the others at 127.0.0.1:" in ended.output
    )
    assert "Traceback" not in ended.output
