"""Real offline runs with no way to the service, read back from the files that they leave."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import EnvironmentProblem
from mslt_ds.recipe.loading import parse_recipe
from mslt_ds.telemetry import wandb_sink
from mslt_ds.telemetry.wandb_sink import RUN_ID_FILE, WandbSink

pytest.importorskip("wandb")

_HEADER_BYTES, _BLOCK_BYTES, _RECORD_HEADER_BYTES = 7, 32 * 1024, 7


def recipe(tmp_path, **wandb) -> RunConfig:
    return parse_recipe(
        {
            "name": "tiny",
            "output_dir": str(tmp_path),
            "model": {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4},
            "plan": {"method": "mslt", "num_stages": 2, "steps_per_stage": 10, "joint_steps": 5},
            "data": {"path": "somewhere"},
            "train": {"global_batch_size": 8, "micro_batch_size": 4},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
            "telemetry": {"wandb": {"enabled": True, "project": "a-project", **wandb}},
        }
    ).config


@pytest.fixture
def no_network(monkeypatch):
    """Only connections inside this machine; wandb's own service process gets a dead address."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    connect = socket.socket.connect

    def local_only(self, address):
        if isinstance(address, tuple) and not str(address[0]).startswith(
            ("127.", "localhost", "::1")
        ):
            raise AssertionError(f"connection to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


def records(path: Path) -> list[Any]:
    """The file's records: a LevelDB log (blocks of 32 KiB; checksum, length, type, data)."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data = path.read_bytes()
    found, offset, begun = [], _HEADER_BYTES, b""
    while offset < len(data):
        if _BLOCK_BYTES - offset % _BLOCK_BYTES < _RECORD_HEADER_BYTES:
            offset += _BLOCK_BYTES - offset % _BLOCK_BYTES
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        offset += _RECORD_HEADER_BYTES
        begun += data[offset : offset + length]
        offset += length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(begun)
            found.append(record)
            begun = b""
    return found


def parts(run_dir: Path) -> list[list[Any]]:
    """The records of each process that wrote to the run, in order of their start."""
    files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime)
    return [records(path) for path in files]


def history(part: list[Any]) -> list[dict[str, float]]:
    rows = []
    for record in part:
        if record.HasField("history"):
            rows.append(
                {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
            )
    return rows


def run_record(part: list[Any]) -> Any:
    return next(record.run for record in part if record.HasField("run"))


def write(config: RunConfig, run_dir: Path, steps) -> None:
    sink = WandbSink(config, run_dir)
    for step in steps:
        sink.write({"step": step, "time": 1.0, "loss": 8.0 - step, "cuda_memory_peak": None})
    sink.close()


def test_offline_run_holds_metrics_and_recipe_and_is_continued_as_the_same_run(
    tmp_path, no_network
):
    config, run_dir = recipe(tmp_path), tmp_path / "tiny"
    run_dir.mkdir()
    write(config, run_dir, range(3))
    write(config, run_dir, range(2, 5))  # resumed: step 2 is repeated
    first, second = parts(run_dir)
    assert [(row["step"], row["train/loss"]) for row in history(first)] == [
        (0, 8.0),
        (1, 7.0),
        (2, 6.0),
    ]
    assert [row["step"] for row in history(second)] == [2, 3, 4]
    run = run_record(first)
    assert run.project == "a-project"
    assert run.display_name == "tiny"
    assert run.run_id == run_record(second).run_id == (run_dir / RUN_ID_FILE).read_text().strip()
    drawn_over = {r.metric.glob_name: r.metric.step_metric for r in first if r.HasField("metric")}
    assert drawn_over["*"] == "step"
    values = {item.key: item.value_json for item in run.config.update}
    assert json.loads(values["optimizer"])["learning_rate"] == 1e-3


def test_online_without_a_login_is_one_clear_error(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"^telemetry\.wandb\.mode: online: .*offline"):
        WandbSink(recipe(tmp_path, mode="online"), tmp_path)


def test_missing_package_is_named_with_the_key(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        EnvironmentProblem, match=r"^telemetry\.wandb\.enabled: true, .*pip install"
    ):
        wandb_sink.check_installed()


def test_no_secret_of_the_environment_gets_into_the_runs_folder(
    tmp_path, no_network, monkeypatch, capfd
):
    secrets = {
        "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
        "HF_TOKEN": "hf_abcdefgh12345678",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    sink = WandbSink(recipe(tmp_path), tmp_path)
    sink.write({"event": "step", "step": 1, "loss": 1.0})
    sink.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    printed = "".join(capfd.readouterr())
    for name, value in secrets.items():
        assert not [path for path in files if value.encode() in path.read_bytes()], name
        assert value not in printed, name
