"""A stand-in for the model hub's documented HTTP interface, on this machine: looks up and downloads
files of repositories, follows old names, creates repositories and takes commits.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 40


@dataclass
class Hub:
    """What it holds: files by repository, names that have moved, and what was asked with a token."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    private: dict[str, bool] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def stand_in(**content: Any) -> Iterator[Hub]:
    """The hub, listening on a port of this machine until the block ends."""
    hub = Hub(**content)

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    held: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests read what was asked."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.held, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {self.path}")
        for old, new in hub.moved.items():
            for place in (f"/api/models/{old}", f"/{old}"):
                if path == place or path.startswith(f"{place}/"):
                    lead = place.removesuffix(old)
                    self._send(307, b"", Location=f"{lead}{new}{self.path[len(place) :]}")
                    return
        for repo, files in hub.files.items():
            if path.startswith(f"/api/models/{repo}/tree/"):
                self._json([self._entry(name, files[name]) for name in files])
            elif path.startswith(f"/api/models/{repo}"):
                siblings = [{"rfilename": name} for name in files]
                self._json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})
            elif path.startswith(f"/{repo}/resolve/"):
                name = path.partition("/resolve/")[2].partition("/")[2]
                if name not in files:
                    break
                etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
                self._send(200, files[name], ETag=etag, **{"X-Repo-Commit": COMMIT})
            else:
                continue
            return
        self._send(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        hub, path = self.held, self.path.partition("?")[0]
        hub.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(401, b'{"error": "Invalid username or password."}')
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hub.files.setdefault(repo, {})
            hub.private[repo] = asked.get("private") is True or asked.get("visibility") == "private"
            self._json({"url": f"{hub.url}/{repo}", "name": repo, "id": repo})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._json({"files": [{"path": name, **regular} for name in names]})
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in filter(None, body.splitlines()):
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    hub.files[repo][entry["value"]["path"]] = content
            self._json(
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}",
                    "hookOutput": "",
                }
            )
        else:
            self._send(404, b"{}")

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
