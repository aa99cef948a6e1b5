"""A small server that speaks the Hub's protocol on loopback: what the real client asks for, and nothing else.

    server = HubServer()
    commit = server.add("me/zoo", {"zoo.json": b"..."})           # a repository, or a new version of it
    server.files("me/zoo", commit), server.requests, server.served()
    server.fault("flip", "shards/a.safetensors", times=1)          # see FAULTS

Repositories are kept in memory with all their versions. Contents of LFS_SUFFIXES go by way of LFS, the rest in commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repositories import Held, Repo, entry, is_lfs

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"

API = rf"/api/(?P<kind>datasets|models)/{REPO}"

FAULTS = {
    "flip": "a body with its last bit flipped",
    "truncate": "half of a body, under the length of the half",
    "drop": "half of a body, under the length of the whole, then the connection ends",
    "hold": "half of a body, and the rest when `released` is set",
    "busy": "503, for any path that ends so: a file, an object's sha256, /commit/main, or all with ''",
    "limit": "429 with Retry-After: 1, for any path that ends so",
    "busy body": "503 for a file whose metadata is told",
    "lost": "a request that is done, but whose answer never comes",
    "hide": "404 for a file that the tree lists",
    "ignore": "a commit that leaves a file out, as a .gitignore in the repository would",
}


class HubServer:
    """The server, running in threads of this process.

    token:     what may write and see private repositories; None lets anybody
    hidden:    status for a repository that is not there, or not to be seen: 401 for who is not logged in, else 404
    page_size: entries in a page of a tree
    extra:     paths that trees list though no such file can be
    names:     commits by the names of branches other than main, such as refs/pr/1
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.hidden = 404
        self.page_size = 1000
        self.extra: list[str] = []
        self.names: dict[str, str] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[tuple[str, int]] = []
        self.lock = threading.RLock()
        self.released = threading.Event()
        self._faults: Counter[tuple[str, str]] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    # What tests ask ---------------------------------------------------------------------------------------------

    def add(self, repo: str, files: dict[str, bytes], *, repo_type: str = "dataset", private: bool = False) -> str:
        """Add a version with these files beside the old ones, and return its commit."""
        with self.lock:
            found = self.repos.setdefault((f"{repo_type}s", repo), Repo(private))
            held = dict(found.versions[found.head]) if found.versions else {}
            return found.commit(held | {path: Held(content, is_lfs(path)) for path, content in files.items()})

    def files(self, repo: str, commit: str | None = None, *, repo_type: str = "dataset") -> dict[str, bytes]:
        found = self.repos[f"{repo_type}s", repo]
        return {path: held.content for path, held in found.versions[commit or found.head].items()}

    def head(self, repo: str, *, repo_type: str = "dataset") -> str:
        return self.repos[f"{repo_type}s", repo].head

    def commits(self, repo: str, *, repo_type: str = "dataset") -> list[str]:
        return list(self.repos[f"{repo_type}s", repo].versions)

    def exists(self, repo: str, *, repo_type: str = "dataset") -> bool:
        return (f"{repo_type}s", repo) in self.repos

    def is_private(self, repo: str, *, repo_type: str = "dataset") -> bool:
        return self.repos[f"{repo_type}s", repo].private

    def uploaded(self) -> list[str]:
        """Return the sha256 of each object that a client sent, in that order."""
        return [path.removeprefix("/objects/") for method, path in self.requests if method == "PUT"]

    def served(self) -> Counter[str]:
        """Return how many bytes of each file the server sent, by path in the repository."""
        counts: Counter[str] = Counter()
        for path, count in self.bodies:
            counts[path] += count
        return counts

    def forget(self) -> None:
        """Forget the requests so far."""
        self.requests.clear()
        self.bodies.clear()

    def fault(self, kind: str, path: str, times: int = 1) -> None:
        """Make something go wrong a number of times; see FAULTS."""
        assert kind in FAULTS
        self._faults[kind, path] = times

    def strikes(self, kind: str, path: str) -> bool:
        """Return whether a fault is due now, and count it."""
        with self.lock:
            for key in list(self._faults):
                if key[0] == kind and path.endswith(key[1]) and self._faults[key] > 0:
                    self._faults[key] -= 1
                    return True
        return False


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route(
            (rf"{API}(/revision/(?P<revision>[^/]+))?", self._info),
            (rf"{API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", self._tree),
            (rf"/(?P<kind>datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._resolve),
        )

    do_HEAD = do_GET  # noqa: N815 - so called by http.server

    def do_POST(self) -> None:
        self._route(
            (r"/api/validate-yaml", self._validate),
            (r"/api/repos/create", self._create),
            (rf"{API}/preupload/main", self._preupload),
            (rf"/(?P<kind>datasets/)?{REPO}\.git/info/lfs/objects/batch", self._batch),
            (r"/objects/(?P<sha256>\w+)/verify", self._verify),
            (rf"{API}/commit/main", self._commit),
        )

    def do_PUT(self) -> None:
        self._route((r"/objects/(?P<sha256>\w+)", self._put))

    def _route(self, *routes) -> None:
        url = urlsplit(self.path)
        self.query, path = (
            parse_qs(url.query),
            "/".join(part if "%2F" in part else unquote(part) for part in url.path.split("/")),
        )
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        if self.hub.strikes("busy", path):
            self._answer(503, {"error": "busy"})
            return
        if self.hub.strikes("limit", path):
            self._answer(429, {"error": "too many requests"}, {"Retry-After": "1"})
            return
        for pattern, handler in routes:
            if found := re.fullmatch(pattern, path):
                # Reading does not wait: bodies are sent side by side.
                with nullcontext() if self.command in ("GET", "HEAD") else self.hub.lock:
                    handler(**found.groupdict())
                return
        self._answer(404, {"error": f"no such page: {path}"})

    def _answer(self, status: int, content: object = b"", headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    # Who may, and what there is ---------------------------------------------------------------------------------

    def _knows(self) -> bool:
        """Return whether the token is right; a wrong one is answered here."""
        return self.hub.token is None or self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _may_write(self) -> bool:
        if not self._knows():
            self._answer(401, {"error": "Invalid username or password."})
        return self._knows()

    def _repo(self, kind: str | None, repo: str) -> Repo | None:
        """Return the repository if the client may see it; otherwise answer that it may not."""
        found = self.hub.repos.get(((kind or "models").strip("/"), repo))
        if found is None or (found.private and not self._knows()):
            self._answer(self.hub.hidden, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def _version(self, found: Repo, revision: str | None) -> str | None:
        commit = found.head if revision in (None, "main") else self.hub.names.get(unquote(revision), revision)
        if commit in found.versions:
            return commit
        self._answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return None

    # Reading ----------------------------------------------------------------------------------------------------

    def _info(self, kind: str, repo: str, revision: str | None) -> None:
        found = self._repo(kind, repo)
        commit = found and self._version(found, revision)
        if found and commit:
            siblings = [{"rfilename": path} for path in found.versions[commit]]
            about = {"id": repo, "sha": commit, "private": found.private, "tags": [], "downloads": 0, "likes": 0}
            self._answer(200, {**about, "siblings": siblings})

    def _tree(self, kind: str, repo: str, revision: str, folder: str | None) -> None:
        found = self._repo(kind, repo)
        commit = found and self._version(found, revision)
        if not found or not commit:
            return
        start = f"{folder}/" if folder else ""
        entries = [entry(path, held) for path, held in sorted(found.versions[commit].items()) if path.startswith(start)]
        if self.query.get("recursive") != ["true"]:
            entries = [item for item in entries if "/" not in str(item["path"]).removeprefix(start)]
        entries += [{"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in self.hub.extra]
        first = int(self.query.get("cursor", ["0"])[0])
        last = first + self.hub.page_size
        url = f"{self.hub.url}/api/{kind}/{repo}/tree/{revision}{'/' + folder if folder else ''}"
        link = f'<{url}?recursive={self.query.get("recursive", ["false"])[0]}&cursor={last}>; rel="next"'
        self._answer(200, entries[first:last], {"Link": link} if last < len(entries) else {})

    def _resolve(self, kind: str | None, repo: str, revision: str, path: str) -> None:
        found = self._repo(kind, repo)
        commit = found and self._version(found, revision)
        if not found or not commit:
            return
        held = found.versions[commit].get(path)
        if held is None or self.hub.strikes("hide", path):
            self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        self._send_file(path, held, {"X-Repo-Commit": commit, "ETag": f'"{held.oid}"', "Accept-Ranges": "bytes"})

    def _send_file(self, path: str, held: Held, headers: dict[str, str]) -> None:
        content, status = held.content, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        if self.command == "GET":
            if self.hub.strikes("busy body", path):
                self._answer(503, {"error": "busy"})
                return
            if self.hub.strikes("flip", path):
                content = content[:-1] + bytes([content[-1] ^ 1])
            if self.hub.strikes("truncate", path):
                content = content[: len(content) // 2]
            if self.hub.strikes("drop", path):
                self._answer(status, content[: len(content) // 2], {**headers, "Content-Length": str(len(content))})
                self._hang_up()
                return
            if self.hub.strikes("hold", path):
                self._answer(status, content[: len(content) // 2], {**headers, "Content-Length": str(len(content))})
                self.hub.released.wait()
                self.wfile.write(content[len(content) // 2 :])
                return
            self.hub.bodies.append((path, len(content)))
        self._answer(status, content, headers)

    # Writing ----------------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        self._answer(200, {"errors": [], "warnings": []})

    def _create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self.body)
        kind, repo = f"{asked['type']}s", f"{asked['organization']}/{asked['name']}"
        status = 409 if (kind, repo) in self.hub.repos else 200
        if status == 200:
            self.hub.repos[kind, repo] = Repo(asked.get("visibility") == "private")
            self.hub.repos[kind, repo].commit({".gitattributes": Held(b"*.bin filter=lfs\n", lfs=False)})
        self._answer(status, {"url": page(self.hub.url, kind, repo)})

    def _preupload(self, kind: str, repo: str) -> None:
        found = self._may_write() and self._repo(kind, repo)
        if not found:
            return
        there = found.versions[found.head]
        files = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            about = {"path": path, "uploadMode": "lfs" if is_lfs(path) else "regular", "shouldIgnore": False}
            files.append(about | ({"oid": there[path].oid} if path in there else {}))
        self._answer(200, {"files": files})

    def _batch(self, kind: str | None, repo: str) -> None:
        if not (self._may_write() and self._repo(kind, repo)):
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/objects/{asked['oid']}"
            wanted = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify"}}
            objects.append(asked if asked["oid"] in self.hub.objects else {**asked, "actions": wanted})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _put(self, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            self._answer(400, {"error": "other bytes than announced"})
            return
        self.hub.objects[sha256] = self.body
        self._answer(200)

    def _verify(self, sha256: str) -> None:
        self._answer(200 if len(self.hub.objects.get(sha256, b"")) == json.loads(self.body)["size"] else 404, {})

    def _commit(self, kind: str, repo: str) -> None:
        found = self._may_write() and self._repo(kind, repo)
        if not found:
            return
        files = dict(found.versions[found.head])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                if value.get("parentCommit", found.head) != found.head:
                    self._answer(412, {"error": "A commit has happened since. Please refresh and try again."})
                    return
            elif self.hub.strikes("ignore", value["path"]):
                continue
            elif item["key"] == "file":
                files[value["path"]] = Held(base64.b64decode(value["content"]), lfs=False)
            elif item["key"] == "lfsFile":
                files[value["path"]] = Held(self.hub.objects[value["oid"]], lfs=True)
        commit = found.commit(files)
        if self.hub.strikes("lost", "/commit/main"):
            self._hang_up()
            return
        self._answer(200, {"commitUrl": f"{page(self.hub.url, kind, repo)}/commit/{commit}", "commitOid": commit})


def page(url: str, kind: str, repo: str) -> str:
    return f"{url}/{'datasets/' if kind == 'datasets' else ''}{repo}"
