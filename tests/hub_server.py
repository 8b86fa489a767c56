"""A model hub on this machine: the part of the hub's HTTP protocol that fetching and pushing small files uses.

Repositories live in memory. Files ending in `.safetensors` are uploaded as large files, in the way of git-lfs, others inside
the commit, as the hub does it.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"


@dataclass
class Repository:
    """Files by path, and whether strangers may see it.

    Attributes:
        gated: files are given only to those who accepted a licence, and nobody has.
        cut: the file during whose transfer the connection breaks.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    cut: str | None = None

    @property
    def sha(self) -> str:
        """A commit id that follows from the content."""
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()


@dataclass
class Hub:
    """The server's state, for tests to fill and to look at.

    Attributes:
        requests: method and path of each request.
        uploads: large files by SHA-256, until a commit names them.
        refused_card: what the check of a card answers, if not well.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refused_card: str | None = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    @property
    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def route(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def repository(self, name: str) -> Repository | None:
        """The repository, or None after answering that there is none."""
        found = self.hub.repositories.get(name)
        if found and (not found.private or self.is_owner):
            return found
        self.answer(
            401 if not self.is_owner else 404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound"
        )
        return None

    def do_GET(self) -> None:
        match self.route():
            case ["api", "models", user, name, "tree", revision]:
                found = self.repository(f"{user}/{name}")
                if found and self.has_revision(found, revision):
                    self.answer(200, [_entry(path, data) for path, data in found.files.items()])
            case ["api", "models", user, name, *rest]:
                found = self.repository(f"{user}/{name}")
                if found and self.has_revision(found, rest[1] if rest else "main"):
                    siblings = [{"rfilename": each, "size": len(data)} for each, data in found.files.items()]
                    self.answer(200, {"id": f"{user}/{name}", "sha": found.sha, "siblings": siblings})
            case [user, name, "resolve", revision, *path]:
                found = self.repository(f"{user}/{name}")
                if found and self.has_revision(found, revision):
                    self.send_file(found, "/".join(path))
            case _:
                self.answer(404)

    do_HEAD = do_GET

    def has_revision(self, found: Repository, revision: str) -> bool:
        if revision in ("main", found.sha):
            return True
        self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return False

    def send_file(self, found: Repository, path: str) -> None:
        if path not in found.files:
            self.answer(
                404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=found.sha
            )
            return
        if found.gated:
            self.answer(403, {"error": "Access is restricted"}, X_Error_Code="GatedRepo")
            return
        content = found.files[path]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        if path == found.cut and self.command == "GET":
            self.send_response(200)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.answer(200, content, ETag=etag, X_Repo_Commit=found.sha)

    def do_PUT(self) -> None:
        match self.route():
            case ["upload", oid]:
                content = self.body()
                assert hashlib.sha256(content).hexdigest() == oid
                self.hub.uploads[oid] = content
                self.answer(200)
            case _:
                self.answer(404)

    def do_POST(self) -> None:
        route, body = self.route(), self.body()
        if route == ["api", "validate-yaml"]:
            errors = [{"message": self.hub.refused_card}] if self.hub.refused_card else []
            self.answer(400 if errors else 200, {"errors": errors, "warnings": []})
        elif not self.is_owner:
            self.answer(401, {"error": "Invalid username or password."})
        elif route == ["api", "repos", "create"]:
            self.create(json.loads(body))
        elif route[:2] == ["api", "models"] and route[4] == "preupload":
            self.answer(200, {"files": [_mode(each["path"]) for each in json.loads(body)["files"]]})
        elif route[1].endswith(".git") and route[2:] == ["info", "lfs", "objects", "batch"]:
            objects = [self.upload_action(each) for each in json.loads(body)["objects"]]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif route[:2] == ["api", "models"] and route[4] == "commit":
            self.commit(f"{route[2]}/{route[3]}", [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "me":
            self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            return
        if name in self.hub.repositories:
            self.answer(
                409, {"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"}
            )
            return
        self.hub.repositories[name] = Repository(
            {".gitattributes": b""}, asked.get("visibility") == "private"
        )
        self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def upload_action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.hub.url}/upload/{wanted['oid']}"
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": {"href": href}}}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        found = self.repository(name)
        if not found:
            return
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.uploads[value["oid"]]
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{found.sha}", "commitOid": found.sha})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith((".safetensors", ".bin", ".png")) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}


class _Server(ThreadingHTTPServer):
    # The client opens a connection a file at once: more than the five that may wait by default.
    request_queue_size = 64


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port of this machine while the context is open."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
