"""A hostfile without ssh: the same command on each node, told apart by --node_rank; here, two on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.conftest import REPOSITORY, free_port
from tests.distributed.recipes import metrics_of, recipe, weights_at


@pytest.mark.slow
def test_two_nodes_of_a_hostfile_train_together(store: Path, tmp_path: Path) -> None:
    content = recipe(store, tmp_path / "runs", "run", plan={"steps_per_stage": 2, "joint_steps": 2})
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    (tmp_path / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    command = [
        str(Path(sys.executable).with_name("deepspeed")),
        "--hostfile", str(tmp_path / "hosts"), "--no_ssh",
        "--master_addr", "127.0.0.1", "--master_port", str(free_port()),
    ]  # fmt: skip
    train = [str(REPOSITORY / "mslt_ds/train.py"), "--config", str(tmp_path / "recipe.yaml")]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(
            [*command, f"--node_rank={rank}", *train], cwd=tmp_path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [node.communicate(timeout=900)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert "world_size=2" in outputs[0].replace("dist_world_size", "world_size")
    lines = metrics_of(tmp_path / "runs" / "run")
    assert [line["step"] for line in lines] == list(range(6))
    assert weights_at(tmp_path / "runs" / "run", "model")
