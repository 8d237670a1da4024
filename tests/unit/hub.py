"""A stand-in for the Hugging Face Hub on this machine: as much of its protocol as uploads and downloads of
models speak.

Repositories, branches, commits of files in the request and of large files through Git LFS's basic
transfer, lists of files, and downloads. State: revision -> path -> content.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = (".safetensors", ".bin")


class Hub:
    """What the server holds, for one repository."""

    def __init__(self) -> None:
        self.repository: str | None = None
        self.private: bool | None = None
        self.revisions: dict[str, dict[str, bytes]] = {}
        self.messages: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refuse_with: int | None = None
        self.fetched: set[str] = set()
        self.url = ""

    def find(self, revision: str) -> dict[str, bytes] | None:
        """The files of a revision, by its name or its commit."""
        by_commit = {commit_of(name): files for name, files in self.revisions.items()}
        return self.revisions.get(revision) or by_commit.get(revision)


def commit_of(revision: str) -> str:
    """The commit that a revision's name stands for."""
    return hashlib.sha1(revision.encode()).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def _send(self, content: object, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_POST(self) -> None:
            body = self._body()
            hub.tokens.add(self.headers.get("Authorization", ""))
            path = self.path
            if hub.refuse_with:
                self._send({"error": "refused"}, hub.refuse_with)
            elif path == "/api/repos/create":
                wanted = json.loads(body)
                name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
                if hub.repository is not None:
                    self._send({"error": "exists", "url": f"{hub.url}/{name}"}, 409)
                    return
                hub.repository, hub.private = (
                    name,
                    wanted.get("private", wanted.get("visibility") == "private"),
                )
                hub.revisions["main"] = {".gitattributes": b""}
                self._send({"url": f"{hub.url}/{name}", "name": name, "id": name})
            elif path == "/api/validate-yaml":
                self._send({"errors": [], "warnings": []})
            elif match := re.fullmatch(r"/api/models/(.+)/branch/([^/]+)", path):
                if match[2] in hub.revisions:
                    self._send({"error": "exists"}, 409)
                    return
                hub.revisions[match[2]] = dict(hub.revisions["main"])
                self._send({})
            elif re.fullmatch(r"/api/models/(.+)/preupload/([^/]+)", path):
                files = [
                    {"path": file["path"], "shouldIgnore": False,
                     "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
                    for file in json.loads(body)["files"]
                ]  # fmt: skip
                self._send({"files": files})
            elif path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {"oid": o["oid"], "size": o["size"],
                     "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                    for o in json.loads(body)["objects"]
                ]  # fmt: skip
                self._send({"transfer": "basic", "objects": objects})
            elif match := re.fullmatch(r"/api/models/(.+)/commit/([^/]+)", path):
                files = hub.revisions[match[2]]
                for raw in body.splitlines():
                    line = json.loads(raw)
                    value = line["value"]
                    if line["key"] == "header":
                        hub.messages.append((match[2], value["summary"]))
                    elif line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.objects[value["oid"]]
                commit = hashlib.sha1(body).hexdigest()
                url = f"{hub.url}/{match[1]}/commit/{commit}"
                self._send({"success": True, "commitOid": commit, "commitUrl": url})
            else:
                self._send({"error": f"POST {path}"}, 404)

        def do_PUT(self) -> None:
            content = self._body()
            oid = self.path.rpartition("/")[2]
            right = hashlib.sha256(content).hexdigest() == oid
            hub.objects[oid] = content
            self._send({}, 200 if right else 400)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path, _, _ = self.path.partition("?")
            listed = re.fullmatch(r"/api/models/(.+)/(revision|tree)/([^/]+)", path)
            match = re.fullmatch(r"/(.+)/(resolve)/([^/]+)/(.+)", path) or listed
            if match is None or hub.repository not in (None, match[1]):
                self._send({"error": f"GET {path}"}, 404, X_Error_Code="RepoNotFound")
                return
            files = hub.find(match[3])
            if files is None:
                self._send({"error": match[3]}, 404, X_Error_Code="RevisionNotFound")
                return
            commit = match[3] if len(match[3]) == 40 else commit_of(match[3])
            if match[2] == "revision":
                self._send({"id": match[1], "sha": commit})
                return
            if match[2] == "tree":
                self._send(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                        for name, content in files.items()
                    ]
                )
                return
            content = files.get(match[4])
            if content is None:
                self._send({"error": f"GET {path}"}, 404, X_Error_Code="EntryNotFound")
                return
            if self.command == "GET":
                hub.fetched.add(match[4])
            digest = hashlib.sha1(content).hexdigest()
            self._send(content, ETag=f'"{digest}"', X_Repo_Commit=commit)

    return Handler


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that listens on a port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
