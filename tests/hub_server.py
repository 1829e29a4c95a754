"""A model hub on the loopback: the part of the protocol that the real client speaks to push and to load a model.

Git LFS only, as mirrors and self-hosted hubs are: it knows nothing of Xet. Commits are kept whole in memory. Faults are
injected with `fail` (an error status) and `cut` (the connection is dropped in the middle of a body).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

USERS = {"token-of-me": "me", "token-of-other": "other"}


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Commit id to {path: sha256 of the content}."""
    branches: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    """Hashes that came as LFS objects."""

    def commit(self, branch: str, files: dict[str, str]) -> str:
        oid = hashlib.sha1(json.dumps([len(self.commits), sorted(files.items())]).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def files(self, revision: str) -> tuple[str, dict[str, str]] | None:
        oid = self.branches.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


@dataclass
class Fault:
    pattern: str
    times: int
    status: int | None
    """None: read half of the body and drop the connection."""


class Hub:
    """`with Hub() as hub:` serves at `hub.url`; `hub.requests` lists what came, `hub.repositories` what is kept."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, pattern: str, status: int, times: int = 1) -> None:
        """The next `times` requests whose "METHOD path" matches are answered with `status`."""
        self.faults.append(Fault(pattern, times, status))

    def cut(self, pattern: str, times: int = 1) -> None:
        """The next `times` matching requests lose their connection after half of their body."""
        self.faults.append(Fault(pattern, times, None))

    def took(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def content(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repositories[repo_id].files(revision)
        assert found is not None
        return {path: self.blobs[sha] for path, sha in found[1].items()}

    def fault(self, request: str) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


class Answer(Exception):
    def __init__(self, status: int, body: Any = None, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}
        if status >= 400:
            said = body["error"] if isinstance(body, dict) else ""
            self.headers |= {"X-Error-Message": said, "X-Error-Code": code} if said else {}


_PAGE = b"<html><h1>Something is wrong upstream</h1></html>"
"""What a gateway in front of a hub answers: no JSON, none of the hub's headers."""

_ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)", "branch"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "put"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)", "tree"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<rev>[^/]+))?", "info"),
    ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 (the base class calls them by these names)

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.hub.fault(f"{self.command} {path}")
        if fault is not None and fault.status is None:
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self._read(length)
        try:
            if fault is not None and fault.status is not None:
                raise Answer(fault.status, _PAGE if fault.status >= 500 else {"error": "injected"})
            with self.hub.lock:
                self._route(path)
        except Answer as answer:
            self._send(answer)

    def _read(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        data = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _send(self, answer: Answer) -> None:
        raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        kind = "text/html" if raw.startswith(b"<") else "application/json"
        headers = {"Content-Type": kind, "Content-Length": str(len(raw)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _route(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in _ROUTES:
            if verb == method and (match := re.fullmatch(pattern, path)):
                values = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                getattr(self, f"_{name}")(**values)
        raise Answer(404, {"error": "no such address"})

    # -- who may do what ---------------------------------------------------------------------------------------------

    def _user(self) -> str | None:
        sent = self.headers.get("Authorization")
        if sent is None:
            return None
        user = USERS.get(sent.removeprefix("Bearer "))
        if user is None:
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        return user

    def _readable(self, repo: str) -> Repository:
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and self._user() != repo.split("/")[0]):
            raise Answer(401, {"error": "Repository not found"}, code="RepoNotFound")
        return found

    def _writable(self, repo: str) -> Repository:
        found = self._readable(repo)
        if self._user() != repo.split("/")[0]:
            raise Answer(403, {"error": "you may not write here"})
        return found

    # -- push --------------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        asked = json.loads(self.body)
        user = self._user()
        if user is None:
            raise Answer(401, {"error": "log in first"})
        owner = asked.get("organization") or user
        repo = f"{owner}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{repo}", "name": repo}
        if owner != user:
            raise Answer(403, {"error": f"you may not create a model under {owner}"})
        if repo in self.hub.repositories:
            raise Answer(409, {"error": "You already created this model repo", **answer})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories[repo] = Repository(private)
        self.hub.repositories[repo].commit("main", {".gitattributes": self._keep(b"*.safetensors filter=lfs\n")})
        raise Answer(200, answer)

    def _whoami(self) -> None:
        user = self._user()
        raise Answer(200, {"name": user, "type": "user"}) if user else Answer(401, {"error": "log in first"})

    def _validate(self) -> None:
        raise Answer(200, {"errors": [], "warnings": []})

    def _branch(self, repo: str, rev: str) -> None:
        found = self._writable(repo)
        if rev in found.branches:
            raise Answer(409, {"error": "branch exists"})
        found.branches[rev] = found.branches["main"]
        raise Answer(200, {})

    def _preupload(self, repo: str, rev: str) -> None:
        here = self._writable(repo).files(rev)
        if here is None:
            raise Answer(404, {"error": f"Invalid rev id: {rev}"}, code="RevisionNotFound")
        files = [
            {
                "path": asked["path"],
                "uploadMode": "lfs" if asked["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": self._oid(repo, here[1].get(asked["path"])),
            }
            for asked in json.loads(self.body)["files"]
        ]
        raise Answer(200, {"files": files})

    def _batch(self, repo: str) -> None:
        self._writable(repo)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            objects.append(entry)
        raise Answer(200, {"transfer": "basic", "objects": objects}, headers={"Content-Type": _LFS_TYPE})

    def _put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Answer(400, {"error": "the content is not what its name says"})
        self._keep(self.body)
        raise Answer(200, {})

    def _commit(self, repo: str, rev: str) -> None:
        found = self._writable(repo)
        here = found.files(rev)
        if here is None or rev not in found.branches:
            raise Answer(404, {"error": f"Invalid rev id: {rev}"}, code="RevisionNotFound")
        files = dict(here[1])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = self._keep(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Answer(400, {"error": f"{value['path']} was never uploaded"})
                files[value["path"]] = value["oid"]
                found.large.add(value["oid"])
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = found.commit(rev, files)
        raise Answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def _keep(self, content: bytes) -> str:
        sha = hashlib.sha256(content).hexdigest()
        self.hub.blobs[sha] = content
        return sha

    def _oid(self, repo: str, sha: str | None) -> str | None:
        """What git calls the content: its SHA-256 as an LFS object, else the hash of a git blob."""
        if sha is None or sha in self.hub.repositories[repo].large:
            return sha
        content = self.hub.blobs[sha]
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    # -- load --------------------------------------------------------------------------------------------------------

    def _info(self, repo: str, rev: str = "main") -> None:
        found = self._readable(repo)
        here = found.files(rev)
        if here is None:
            raise Answer(404, {"error": f"Invalid rev id: {rev}"}, code="RevisionNotFound")
        siblings = [{"rfilename": path} for path in sorted(here[1])]
        body = {"id": repo, "modelId": repo, "sha": here[0], "private": found.private, "siblings": siblings, "tags": []}
        raise Answer(200, body)

    def _tree(self, repo: str, rev: str) -> None:
        here = self._readable(repo).files(rev)
        if here is None:
            raise Answer(404, {"error": f"Invalid rev id: {rev}"}, code="RevisionNotFound")
        tree = []
        for path, sha in sorted(here[1].items()):
            size = len(self.hub.blobs[sha])
            entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": self._oid(repo, sha)}
            if sha in self.hub.repositories[repo].large:
                entry["lfs"] = {"oid": sha, "size": size, "pointerSize": 130}
            tree.append(entry)
        raise Answer(200, tree)

    def _resolve(self, repo: str, rev: str, path: str) -> None:
        here = self._readable(repo).files(rev)
        if here is None:
            raise Answer(404, {"error": f"Invalid rev id: {rev}"}, code="RevisionNotFound")
        if path not in here[1]:
            raise Answer(404, {"error": "Entry not found"}, code="EntryNotFound", headers={"X-Repo-Commit": here[0]})
        sha = here[1][path]
        headers = {"X-Repo-Commit": here[0], "ETag": f'"{self._oid(repo, sha)}"', "Accept-Ranges": "bytes"}
        if sha in self.hub.repositories[repo].large:
            headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(self.hub.blobs[sha]))}
        raise Answer(200, self.hub.blobs[sha], headers=headers)


_LFS_TYPE = "application/vnd.git-lfs+json"
