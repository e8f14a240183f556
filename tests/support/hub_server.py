"""A small server that speaks as much of the Hugging Face hub's protocol as downloading a model needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Repository:
    """A repository: the commit of each revision, and the files of each commit."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    def add(self, folder: Path, revision: str = "main", **more: bytes) -> str:
        """A new commit with the files of a folder, and `more`; returns its hash."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())} | more
        commit = hashlib.sha1(b"".join(name.encode() + content for name, content in files.items())).hexdigest()
        self.revisions[revision] = commit
        self.commits[commit] = files
        return commit


@dataclass
class Hub:
    """A running server: its address, its repositories by name, and the files that were fetched from it."""

    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    requests: int = 0


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub on this machine, for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub, parts = self.server.hub, self.path.partition("?")[0].strip("/").split("/")
        hub.requests += 1
        is_info = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_info else parts
        repository = hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if repository.gated and not is_info:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        files = repository.commits[commit]
        if is_info:
            return self._send(200, json.dumps(self._info(f"{owner}/{name}", commit, files)).encode(), {})
        file = "/".join(rest[2:])
        if file not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        if with_body:
            hub.fetched.append(file)
        headers = {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"', "X-Repo-Commit": commit}
        return self._send(200, files[file], headers, with_body)

    def _info(self, name: str, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
        return {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}

    def _send(self, status: int, content: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body and self.command == "GET":
            self.wfile.write(content)
