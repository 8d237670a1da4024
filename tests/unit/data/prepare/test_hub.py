"""A data set of the hub: the command against a hub of this machine's own, then against none."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mslt_ds.data.store import TokenStore
from tests.unit.data.prepare.test_prepare_sources import texts_of

COMMIT = "a" * 40


def parquet(*texts: str) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"body": texts}), content)
    return content.getvalue()


def card(*configs: str) -> bytes:
    lines = ["---", "configs:"]
    for config in configs:
        lines += [f"- config_name: {config}", f"  data_files: {config}/train-*.parquet"]
    return "\n".join([*lines, "---", ""]).encode()


FILES = {
    "README.md": card("one", "two"),
    "one/train-00000.parquet": parquet("A first value.", "A second value."),
    "two/train-00000.parquet": parquet("Another."),
}


class Hub(BaseHTTPRequestHandler):
    """What `datasets` asks for to load `owner/name`, of the hub's interface."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        _, resolve, file = path.partition("/datasets/owner/name/resolve/")
        name = file.partition("/")[2]
        _, tree, folder = path.partition("/api/datasets/owner/name/tree/")
        if resolve and name in FILES:
            self.answer(200, FILES[name])
        elif resolve:
            self.answer(404, b"{}", "EntryNotFound")
        elif tree:
            prefix = f"{folder.partition('/')[2]}/".removeprefix("/")
            names = [name for name in FILES if name.startswith(prefix)]
            self.answer(200, json.dumps([self.entry(n, prefix) for n in names]).encode())
        elif path == f"/api/datasets/owner/name/revision/{COMMIT}":
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "owner/name", "sha": COMMIT, "siblings": siblings, "tags": []}
            self.answer(200, json.dumps(info).encode())
        else:
            self.answer(404, b"{}", "RepoNotFound")

    do_HEAD = do_GET

    def entry(self, name: str, prefix: str) -> dict[str, object]:
        folder, slash, _ = name.removeprefix(prefix).partition("/")
        if slash:
            return {"type": "directory", "oid": COMMIT, "size": 0, "path": prefix + folder}
        return {"type": "file", "oid": COMMIT, "size": len(FILES[name]), "path": name}

    def answer(self, status: int, content: bytes, error: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Length": len(content), "X-Repo-Commit": COMMIT, "X-Error-Code": error,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
        }  # fmt: skip
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that knows this hub alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    yield {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    server.shutdown()
    server.server_close()


def prepare(
    given: str, output: Path, tokenizer: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mslt_ds.cli", "prepare", "--workers", "1", "--input", given]
    command += ["--output", str(output), "--tokenizer", str(tokenizer)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_a_data_set_of_the_hub_is_loaded_once(tmp_path: Path, store_path: Path, hub):
    first = prepare("owner/name:one,field=body", tmp_path / "a", store_path, hub)
    assert first.returncode == 0, first.stderr
    assert texts_of(tmp_path / "a") == ["a first value.", "a second value."]
    (source,) = TokenStore.open(tmp_path / "a").manifest["sources"]
    assert source["name"] == "owner/name:one" and source["read"]["documents"] == 2
    # Then it's on this machine.
    away = hub | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    again = prepare("owner/name:one,field=body", tmp_path / "b", store_path, away)
    assert again.returncode == 0, again.stderr
    assert TokenStore.open(tmp_path / "b").manifest == TokenStore.open(tmp_path / "a").manifest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("owner/name", "available configs: ['one', 'two']"),
        ("owner/nothing", "'owner/nothing' doesn't exist on the Hub"),
    ],
)
def test_what_the_hub_says_is_passed_on(tmp_path: Path, store_path: Path, hub, given, message):
    refused = prepare(given, tmp_path / "a", store_path, hub)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert f"error: --input: {given}: can't be loaded as a data set" in refused.stderr
    assert message in refused.stderr
    assert not (tmp_path / "a").exists()
