"""A model hub on this machine: the endpoints of Hugging Face that the package huggingface_hub asks for a model.

Weights go by Git LFS, as on the hub; other files are part of the commit. A commit holds the whole repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "t" * 34  # may do everything
LFS = (".safetensors",)


class Hub:
    """Runs in a thread; use it in a `with` block.

    Attributes:
        commits: of each repository, (id, {name: content}) from the first to the newest.
        private: names of repositories that only `TOKEN` may see.
        asked: method and path of each request that it knows.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.large: dict[str, bytes] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Adds a commit with these files and no others. Returns its id."""
        history = self.commits.setdefault(repo, [])
        commit = hashlib.sha1(f"{repo} {len(history)}".encode()).hexdigest()
        history.append((commit, files))
        return commit

    def files(self, repo: str, revision: str = "main") -> tuple[str, dict[str, bytes]]:
        """Id and files of a commit; KeyError if there is none."""
        history = self.commits[repo]
        return history[-1] if revision == "main" else next((c, f) for c, f in history if c == revision)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        for method, form, answer in ROUTES:
            if self.command in method and (found := re.fullmatch(form, path)):
                self.hub.asked.append((self.command, path))
                answer(self, *found.groups())
                return
        self._answer(404, {"error": f"the stub does not know {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Answers itself, and returns None, if there are none."""
        if repo not in self.hub.commits or (repo in self.hub.private and not self._is_allowed()):
            status = 404 if self._is_allowed() else 401  # as the hub does
            self._answer(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        try:
            return self.hub.files(repo, revision)
        except StopIteration:
            self._answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return None

    def create(self) -> None:
        if not self._is_allowed():
            self._answer(401, {"error": "Invalid username or password."})
            return
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        there = {"url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.commits:
            self._answer(409, {"error": "You already created this model repo", **there})
            return
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._answer(200, there)

    def info(self, repo: str, revision: str | None = None) -> None:
        if (found := self._files(repo, revision or "main")) is not None:
            commit, files = found
            siblings = [{"rfilename": name} for name in files]
            self._answer(200, {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings})

    def file(self, repo: str, revision: str, name: str) -> None:
        if (found := self._files(repo, revision)) is not None:
            commit, files = found
            if name not in files:
                self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
                return
            tag = hashlib.sha256(files[name]).hexdigest()
            self._answer(200, files[name], X_Repo_Commit=commit, ETag=f'"{tag}"')

    def validate(self) -> None:
        self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        if not self._is_allowed():
            self._answer(403, {"error": "You don't have the rights"})
            return
        names = [each["path"] for each in json.loads(self.body)["files"]]
        mode = {True: "lfs", False: "regular"}
        files = [{"path": n, "uploadMode": mode[n.endswith(LFS)], "shouldIgnore": False, "oid": None} for n in names]
        self._answer(200, {"files": files})

    def batch(self, repo: str) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/upload/{each['oid']}"}}}
            for each in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.large[oid] = self.body
        self._answer(200)

    def add_commit(self, repo: str, revision: str) -> None:
        files = dict(self.hub.files(repo)[1])
        for line in self.body.splitlines():
            asked = json.loads(line)
            value = asked["value"]
            if asked["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif asked["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif asked["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(repo, files)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def log_message(self, *_: object) -> None:
        pass


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("GET",), f"/api/models/{REPO}", _Handler.info),
    (("GET",), f"/api/models/{REPO}/revision/(.+)", _Handler.info),
    (("GET", "HEAD"), f"/{REPO}/resolve/([^/]+)/(.+)", _Handler.file),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), f"/api/models/{REPO}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), "/upload/([0-9a-f]+)", _Handler.upload),
    (("POST",), f"/api/models/{REPO}/commit/([^/]+)", _Handler.add_commit),
]
