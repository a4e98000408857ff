"""A model hub on loopback: one repository that is there, and several ways to be refused."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path

REPOSITORY = "some/tiny"
_COMMIT = re.compile("[0-9a-f]{40}")


class Hub:
    """Answers as the hub does; a context manager that ends it.

    Parameters
    ----------
    files : Path
        Directory of what :data:`REPOSITORY` holds, at every commit.

    Attributes
    ----------
    commit : str
        What the branch is now.
    next_commit : str or None
        What the branch is once somebody has asked.
    branch_asked : int
        How often somebody has asked what the branch is.
    """

    def __init__(self, files: Path) -> None:
        self.files = files
        self.commit = "0123456789abcdef0123456789abcdef01234567"
        self.next_commit: str | None = None
        self.branch_asked = 0
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def address(self) -> str:
        """For ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def resolve(self, revision: str) -> str:
        """The commit of a revision."""
        if _COMMIT.fullmatch(revision):
            return revision
        self.branch_asked += 1
        told, self.commit = self.commit, self.next_commit or self.commit
        return told

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = self.hub.files
        told = f"/api/models/{REPOSITORY}"
        if path.startswith(f"{told}/tree/"):
            entries = [
                {
                    "type": "file",
                    "path": file.name,
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for file in files.iterdir()
            ]
            self.answer(json.dumps(entries).encode(), "application/json")
        elif path.startswith(told):
            commit = self.hub.resolve(path.removeprefix(told).rpartition("/")[2])
            siblings = [{"rfilename": file.name} for file in files.iterdir()]
            found = {"id": REPOSITORY, "sha": commit, "siblings": siblings}
            self.answer(json.dumps(found).encode(), "application/json")
        elif path.startswith(f"/{REPOSITORY}/resolve/"):
            commit, name = path.split("/")[-2:]
            self.answer((files / name).read_bytes(), "application/octet-stream", commit)
        elif "/some/gated" in path:
            self.refuse(403, "GatedRepo")
        elif "/some/known" in path:
            self.refuse(404, "RevisionNotFound")
        else:
            self.refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def answer(self, content: bytes, kind: str, commit: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
