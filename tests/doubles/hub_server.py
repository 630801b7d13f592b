"""A loopback Hub: the part of huggingface.co that `huggingface_hub` needs to create, push to and load from a repo.

`with HubServer() as hub:` serves on a free port of 127.0.0.1, models and datasets alike. A client is a subprocess with
`env=hub.environment(cache)`, because both libraries read the endpoint when they are imported. What was pushed is in
`hub.files("model", "me/name")`, every request in `hub.requests`, the log that a real server would keep in `hub.log`.

Spoken: whoami, create (private or not), branches, info, tree, paths-info, preupload, LFS batch (basic transfer, sha256
checked), commit (files, LFS files, deletions, `parentCommit`), validate-yaml, resolve with ETag and Range. Not spoken
(404): Xet, tags, pull requests, multipart uploads. `hub.before_commit` runs as a commit comes in: races, faults.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from doubles.loopback import Canned as Answer
from doubles.loopback import Loopback


_LARGE = (".safetensors", ".bin", ".parquet", ".pt", ".gguf", ".arrow")
_API = r"/api/(?P<kind>model|dataset)s/(?P<id>[^/]+/[^/]+)"
_GIT = r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)"
_BINARY = "application/octet-stream"
_TAIL = r"(?:/(?P<path>.*))?"


@dataclass
class Repo:
    """A repo as its commits in the order they came: (commit id, message, whole content by path)."""

    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)  # branch -> its last commit
    lfs: set[str] = field(default_factory=set)  # paths that are stored as LFS files
    private: bool = False

    def commit(self, message: str, files: dict[str, bytes], branch: str = "main") -> str:
        parent = self.heads.get(branch, "")
        listing = "".join(f"{name}{hashlib.sha256(data).hexdigest()}" for name, data in sorted(files.items()))
        sha = hashlib.sha1(f"{parent}\n{message}\n{listing}".encode()).hexdigest()
        self.commits.append((sha, message, files))
        self.heads[branch] = sha
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit id, files) of a branch or commit."""
        wanted = self.heads.get(revision, revision)
        for sha, _, files in reversed(self.commits):
            if sha == wanted:
                return sha, files
        return None


def answer(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode())


def error(status: int, code: str, text: str) -> Answer:
    known = {"X-Error-Code": code, "X-Error-Message": text}
    return Answer(status, json.dumps({"error": text}).encode(), known)


class HubServer(Loopback):
    """The server; `token` is the only one that may write."""

    def __init__(self, token: str = "hf_loopbackLoopbackLoopback") -> None:
        super().__init__()
        self.token = token
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.log: list[str] = []
        self.before_commit: Callable[[Repo], Answer | None] | None = None
        self._blobs: dict[str, bytes] = {}

    def environment(self, cache: Path | str, *, token: bool = True) -> dict[str, str]:
        """The environment of a client: this Hub alone, a cache of its own, no Xet (a 404 of its token route fails a
        push without falling back to LFS: huggingface_hub#4507)."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        env |= {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        return env | ({"HF_TOKEN": self.token} if token else {})

    def files(self, kind: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a branch or commit of a "model" or "dataset" repo holds, by path."""
        return dict(self.repos[kind, repo_id].at(revision)[1])

    # ---- Answers, one a route ----

    def respond(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> Answer:
        method, url = "GET" if method == "HEAD" else method, urlsplit(path)
        with self._lock:
            self.requests.append((method, url.path))
            for wanted, pattern, handle, writes in _ROUTES:
                if method == wanted and (match := re.fullmatch(pattern, unquote(url.path))):
                    if writes and headers.get("authorization") != f"Bearer {self.token}":
                        return error(401, "Unauthorized", "Invalid username or password.")
                    return handle(self, match.groupdict(), {"query": parse_qs(url.query), "headers": headers}, raw)
        return error(404, "NotFound", "no such page")

    def logged(self, line: str) -> None:
        self.log.append(line)

    def _whoami(self, found: dict, request: dict, body: bytes) -> Answer:
        return answer({"type": "user", "id": "1", "name": "tester", "fullname": "Tester", "orgs": []})

    def _create(self, found: dict, request: dict, body: bytes) -> Answer:
        wanted = json.loads(body)
        kind, name = wanted.get("type") or "model", f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        url = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.repos:
            return answer({"error": "You already created this repo", "url": url}, 409)
        self.repos[kind, name] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.repos[kind, name].commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs -text\n"})
        return answer({"url": url, "name": name})

    def _repo(self, found: dict) -> Repo | None:
        return self.repos.get(((found["kind"] or "model").removesuffix("s/"), found["id"]))

    def _at(self, found: dict) -> tuple[Repo, str, dict[str, bytes]] | Answer:
        """The repo, commit and files that a path names, or the Hub's way to say that they are not there."""
        repo = self._repo(found)
        if repo is None:
            return error(404, "RepoNotFound", "Repository not found")
        commit = repo.at(found.get("revision") or "main")
        return (repo, *commit) if commit else error(404, "RevisionNotFound", "Invalid rev id")

    def _info(self, found: dict, request: dict, body: bytes) -> Answer:
        at = self._at(found)
        if isinstance(at, Answer):
            return at
        repo, sha, files = at
        if repo.private and request["headers"].get("authorization") != f"Bearer {self.token}":
            return error(401, "RepoNotFound", "Repository not found")
        siblings = [{"rfilename": name, "size": len(data)} for name, data in sorted(files.items())]
        known = {"_id": "1", "id": found["id"], "author": found["id"].split("/")[0], "sha": sha, "siblings": siblings}
        known |= {"private": repo.private, "gated": False, "disabled": False}
        return answer({**known, "tags": [], "downloads": 0})

    def _branch(self, found: dict, request: dict, body: bytes) -> Answer:
        repo = self._repo(found)
        if repo is None:
            return error(404, "RepoNotFound", "Repository not found")
        if found["revision"] in repo.heads:
            return error(409, "Conflict", "Reference already exists")
        repo.heads[found["revision"]] = json.loads(body or b"{}").get("startingPoint") or repo.heads["main"]
        return answer({})

    def _tree(self, found: dict, request: dict, body: bytes) -> Answer:
        at = self._at(found)
        if isinstance(at, Answer):
            return at
        repo, _, files = at
        folder = f"{found['path'].rstrip('/')}/" if found.get("path") else ""
        inside = {name: data for name, data in sorted(files.items()) if name.startswith(folder)}
        if folder and not inside:
            return error(404, "EntryNotFound", f"{folder} does not exist")
        deep = request["query"].get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {
            name: _entry(repo, name, data) for name, data in inside.items() if deep or "/" not in name[len(folder) :]
        }
        for name in inside:
            parts = name[len(folder) :].split("/")[:-1]
            for depth in range(1, (len(parts) if deep else min(len(parts), 1)) + 1):
                path = folder + "/".join(parts[:depth])
                entries[path] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
        return answer(list(entries.values()))

    def _paths_info(self, found: dict, request: dict, body: bytes) -> Answer:
        at = self._at(found)
        if isinstance(at, Answer):
            return at
        repo, _, files = at
        asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
        return answer([_entry(repo, name, files[name]) for name in asked if name in files])

    def _preupload(self, found: dict, request: dict, body: bytes) -> Answer:
        at = self._at(found)
        if isinstance(at, Answer):
            return at
        repo, _, there = at
        modes = []
        for file in json.loads(body)["files"]:
            name = file["path"]
            large = name.endswith(_LARGE) or b"\0" in base64.b64decode(file["sample"])
            mode = {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if name in there:  # what lets a client leave out what has not changed
                entry = _entry(repo, name, there[name])
                mode["oid"] = entry.get("lfs", entry)["oid"]
            modes.append(mode)
        return answer({"files": modes})

    def _batch(self, found: dict, request: dict, body: bytes) -> Answer:
        objects = []
        for item in json.loads(body)["objects"]:
            new = item["oid"] not in self._blobs
            upload = {
                "upload": {"href": f"{self.url}/lfs/{item['oid']}"},
                "verify": {"href": f"{self.url}/lfs-verify"},
            }
            objects.append({**item, **({"actions": upload} if new else {})})
        return answer({"transfer": "basic", "objects": objects})

    def _upload(self, found: dict, request: dict, body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != found["oid"]:
            return error(400, "BadDigest", "content does not match its sha256")
        self._blobs[found["oid"]] = body
        return Answer()

    def _verify(self, found: dict, request: dict, body: bytes) -> Answer:
        wanted = json.loads(body)
        there = self._blobs.get(wanted["oid"])
        fits = there is not None and len(there) == wanted["size"]
        return answer({}) if fits else error(404, "EntryNotFound", "not uploaded")

    def _commit(self, found: dict, request: dict, body: bytes) -> Answer:
        hook = self.before_commit
        if hook is not None and (repo := self._repo(found)) is not None and (fault := hook(repo)) is not None:
            return fault
        at = self._at(found)
        if isinstance(at, Answer):
            return at
        repo, sha, before = at
        files, message = dict(before), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", sha) != sha:
                    return error(412, "PreconditionFailed", "the branch moved on")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self._blobs[value["oid"]]
                repo.lfs.add(value["path"])
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
            else:
                return error(400, "BadRequest", f"this server has no {item['key']}")
        new = repo.commit(message, files, found["revision"])
        return answer({"success": True, "commitOid": new, "commitUrl": f"{self.url}/{found['id']}/commit/{new}"})

    def _validate(self, found: dict, request: dict, body: bytes) -> Answer:
        import yaml

        text = json.loads(body)["content"]
        try:
            front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
            problems = [] if isinstance(front, dict) else [{"message": "the front matter is no mapping"}]
        except yaml.YAMLError as failure:
            problems = [{"message": str(failure)}]
        return answer({"errors": problems, "warnings": []}, 400 if problems else 200)

    def _resolve(self, found: dict, request: dict, body: bytes) -> Answer:
        at = self._at(found)
        if isinstance(at, Answer):
            return at
        repo, sha, files = at
        name = found["path"]
        if name not in files:
            return Answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        data = files[name]
        entry = _entry(repo, name, data)
        known = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        known["ETag"] = f'"{entry.get("lfs", entry)["oid"]}"'
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", request["headers"].get("range") or ""):
            first, last = int(span[1]), int(span[2] or len(data) - 1)
            known["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            return Answer(206, data[first : last + 1], known, _BINARY)
        return Answer(200, data, known, _BINARY)


def _entry(repo: Repo, name: str, data: bytes) -> dict[str, Any]:
    """A file as `tree` and `paths-info` list it."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": blob, "size": len(data), "path": name}
    if name in repo.lfs:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


# (method, pattern of the path, who answers, whether it takes the token); HEAD is asked as GET
_ROUTES: list[tuple[str, str, Callable[..., Answer], bool]] = [
    ("GET", r"/api/whoami-v2", HubServer._whoami, True),
    ("POST", r"/api/repos/create", HubServer._create, True),
    ("POST", r"/api/validate-yaml", HubServer._validate, False),
    ("GET", _API + r"(?:/revision/(?P<revision>[^/]+))?", HubServer._info, False),
    ("POST", _API + r"/branch/(?P<revision>[^/]+)", HubServer._branch, True),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)" + _TAIL, HubServer._tree, False),
    ("POST", _API + r"/paths-info/(?P<revision>[^/]+)", HubServer._paths_info, False),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", HubServer._preupload, True),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", HubServer._commit, True),
    ("POST", _GIT + r"\.git/info/lfs/objects/batch", HubServer._batch, True),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", HubServer._upload, False),  # a signed address on the real one
    ("POST", r"/lfs-verify", HubServer._verify, True),
    ("GET", _GIT + r"/resolve/(?P<revision>[^/]+)" + _TAIL, HubServer._resolve, False),
]
