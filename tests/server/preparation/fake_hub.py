"""A server that answers as a Hugging Face hub does, for what pulling asks of it.

GET  /api/models/ID[/revision/REV]     what the repository is and which files it has
GET  /api/models/ID/tree/REV           the files with their sizes
HEAD /ID/resolve/REV/PATH              ETag, commit, size; large files as a redirect
GET  /ID/resolve/REV/PATH, /cdn/…      the bytes
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<rev>[^/]+))?")
_FILE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
# As on the hub: larger files are not in git, and are answered by a redirect.
_LARGE_BYTES = 400
_CDN = "/cdn"


@dataclass(frozen=True, slots=True)
class FakeRepository:
    """One repository.

    Attributes:
        revisions: Branch, tag or commit to the files it has.
        commits: Branch or tag to its commit.
        token: Needed to see it; None for a public one.
        gated: Whether its files, but not its listing, are kept from everybody.
    """

    revisions: Mapping[str, Mapping[str, bytes]]
    commits: Mapping[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, and by whom."""

    method: str
    path: str
    token: str | None


class FakeHub:
    """Serves on a free port of the loopback while entered.

    Attributes:
        repositories: Id to repository.
        requests: What was asked for so far.
        on_request: Called before each answer, which waits for it.
    """

    def __init__(self, repositories: Mapping[str, FakeRepository]) -> None:
        self.repositories = repositories
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], object] = self.requests.append
        hub = self

        class Handler(_Handler):
            fake = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fetched(self, repository: str) -> set[str]:
        """Paths of a repository's files whose bytes were asked for."""
        paths = (r.path.removeprefix(_CDN) for r in self.requests if r.method == "GET")
        matches = [match for match in map(_FILE.fullmatch, paths) if match]
        return {match["path"] for match in matches if match["id"] == repository}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.fake.on_request(Request(self.command, path, token))
        match = _API.fullmatch(path) or _FILE.fullmatch(path.removeprefix(_CDN))
        repository = self.fake.repositories.get(match["id"]) if match else None
        if match is None or repository is None:
            # The hub does not tell strangers what is missing from what is private.
            self._refuse(401 if token is None else 404, "RepoNotFound")
        elif repository.token not in {None, token} and not path.startswith(_CDN):
            self._refuse(401, "RepoNotFound")
        elif (match["rev"] or "main") not in repository.revisions:
            self._refuse(404, "RevisionNotFound")
        elif "path" in match.groupdict():
            self._file(repository, match, is_cdn=path.startswith(_CDN))
        else:
            self._listing(repository, match)

    def _listing(self, repository: FakeRepository, match: re.Match[str]) -> None:
        revision = match["rev"] or "main"
        files = repository.revisions[revision]
        if match["what"] == "tree":
            self._send(json.dumps([_entry(name, files[name]) for name in files]).encode())
            return
        siblings = [{"rfilename": name} for name in files]
        info = {"id": match["id"], "sha": _commit(repository, revision), "siblings": siblings}
        self._send(json.dumps(info).encode())

    def _file(self, repository: FakeRepository, match: re.Match[str], *, is_cdn: bool) -> None:
        revision, path = match["rev"], match["path"]
        data = repository.revisions[revision].get(path)
        if repository.gated:
            self._refuse(403, "GatedRepo")
        elif data is None:
            self._refuse(404, "EntryNotFound")
        elif is_cdn or len(data) < _LARGE_BYTES:
            self._send(data, _headers(repository, revision, data))
        else:
            headers = _headers(repository, revision, data)
            headers["X-Linked-Etag"] = headers.pop("ETag")
            headers["X-Linked-Size"] = str(len(data))
            headers["Location"] = f"{self.fake.url}{_CDN}/{match['id']}/resolve/{revision}/{path}"
            self._send(b"", headers, status=302)

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status=status)

    def _send(
        self, data: bytes, headers: Mapping[str, str] | None = None, status: int = 200
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _commit(repository: FakeRepository, revision: str) -> str:
    return repository.commits.get(revision, revision)


def _headers(repository: FakeRepository, revision: str, data: bytes) -> dict[str, str]:
    digest = hashlib.sha256(data).hexdigest()
    return {"ETag": f'"{digest}"', "X-Repo-Commit": _commit(repository, revision)}


def _entry(name: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": digest[:40]}
