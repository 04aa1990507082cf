"""A stand-in for the Hugging Face Hub on 127.0.0.1: as much of its HTTP as huggingface_hub uses.

Repositories are dicts in memory. Small files travel inside the commit ("regular"), those whose
names end in `lfs_ending` through Git LFS. Every request is kept in `requests`.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """repos: id -> {"files": {path: bytes}, "private": bool, "branches": set}.

    refuse, refuse_commit: status that every look-up, or every commit, gets. The token "hf_reader"
    may not write. commits: messages of those that arrived; blobs: files that came through LFS.
    """

    def __init__(self, lfs_ending=None):
        self.repos, self.commits, self.requests, self.blobs = {}, [], [], {}
        self.refuse = self.refuse_commit = None
        self.lfs_ending = lfs_ending
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    def add(self, repo_id, files=(), private=False, branches=()):
        self.repos[repo_id] = {
            "files": dict(files),
            "private": private,
            "branches": {"main", *branches},
        }

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self._begin()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/([^/]+))?", path):
            repo = self._repo(found[1])
            if repo is None:
                return
            if found[3] and found[3] not in repo["branches"] | {COMMIT}:
                self._fail(404, "RevisionNotFound")
                return
            self._json({"id": found[1], "sha": COMMIT, "private": repo["private"], "siblings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = self.hub.repos[found[1]]["files"]
            self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                    for name, data in files.items()
                ]
            )
        else:
            self.do_HEAD(path)

    def do_HEAD(self, path=None):
        path = path or self._begin()
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        data = self.hub.repos[found[1]]["files"].get(found[2]) if found else None
        if data is None:
            self._fail(404, "EntryNotFound")
            return
        self._answer(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(data)}"'})

    def do_POST(self):
        path = self._begin()
        if self.headers.get("Authorization") == "Bearer hf_reader":
            self._fail(403)
        elif path == "/api/repos/create":
            wanted = json.loads(self.body)
            repo_id = f"{wanted['organization']}/{wanted['name']}"
            exists = repo_id in self.hub.repos
            if not exists:
                self.hub.add(repo_id, private=wanted.get("visibility") == "private")
            self._json({"url": f"{self.hub.endpoint}/{repo_id}"}, 409 if exists else 200)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", path):
            self.hub.repos[found[1]]["branches"].add(found[2])
            self._json({})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/[^/]+", path):
            ending = self.hub.lfs_ending
            self._json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "shouldIgnore": False,
                            "uploadMode": "lfs"
                            if ending and file["path"].endswith(ending)
                            else "regular",
                        }
                        for file in json.loads(self.body)["files"]
                    ]
                }
            )
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            self._json(
                {
                    "transfer": "basic",
                    "objects": [
                        {
                            **item,
                            "actions": {
                                "upload": {"href": f"{self.hub.endpoint}/blob/{item['oid']}"}
                            },
                        }
                        for item in json.loads(self.body)["objects"]
                    ],
                }
            )
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            if self.hub.refuse_commit:
                self._fail(self.hub.refuse_commit)
                return
            self._commit(self.hub.repos[found[1]]["files"])
            self._json(
                {
                    "commitUrl": f"{self.hub.endpoint}/{found[1]}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            )
        else:
            self._fail(404)

    def do_PUT(self):
        oid = self._begin().removeprefix("/blob/")
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self._answer(200, b"")

    def _commit(self, files):
        for line in map(json.loads, self.body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]

    def _begin(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        return path

    def _repo(self, repo_id):
        if self.hub.refuse:
            self._fail(self.hub.refuse)
            return None
        if repo_id not in self.hub.repos:
            self._fail(404, "RepoNotFound")
            return None
        return self.hub.repos[repo_id]

    def _json(self, content, status=200):
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _fail(self, status, code=None):
        self._answer(status, b"{}", {"X-Error-Code": code} if code else {})

    def _answer(self, status, data, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def _oid(data):
    return hashlib.sha1(data).hexdigest()
