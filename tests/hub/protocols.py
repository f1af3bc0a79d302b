"""A loopback server that speaks the protocols of Hugging Face, ModelScope and OpenDataLab over some repositories.

It knows what the real clients ask (tests check that with huggingface_hub) and takes uploads too. `script` and `seen`
are those of LoopbackServer: a scripted behaviour replaces the answer to the next request for a file's bytes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .loopback import LoopbackServer, _Handler, ranged

__all__ = ["COMMIT", "ProtocolServer", "Repository", "git_oid"]

COMMIT = "c0ffee" * 6 + "c0de"
PAGE = 3
LARGE = 5_000
"""Files from this size on are kept as LFS objects, with a sha256 in the listing."""


def git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Repository:
    """Files by path. `gated` asks for the server's token; `dataset` decides which routes know it."""

    files: dict[str, bytes] = field(default_factory=dict)
    dataset: bool = False
    gated: bool = False
    revision: str = COMMIT


class _Protocol(_Handler):
    server: ProtocolServer

    def serve(self) -> None:
        method = self.command
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(length)
        self.server.asked.append((method, self.path, dict(self.headers)))
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        path = unquote(parts.path)
        if path in self.server.files:
            self.send_file(self.server.files[path])
            return
        for route in (self._hf, self._hf_upload, self._modelscope_upload, self._modelscope, self._opendatalab):
            if route(method, path, query, body):
                return
        self.send_json({"error": "Repository not found"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815 - http.server looks for these names

    def send_json(self, value: Any, status: int = 200, **headers: str) -> bool:
        content = json.dumps(value).encode()
        self.begin(status, len(content), Content_Type="application/json", **headers)
        if self.command != "HEAD":
            self.wfile.write(content)
        return True

    def send_file(self, content: bytes, **headers: str) -> bool:
        """Bytes with ranges, or the next scripted behaviour."""
        owner = self.server
        owner.seen.append((self.path, dict(self.headers)))
        if self.command == "HEAD":
            self.begin(200, len(content), Accept_Ranges="bytes", **headers)
        elif owner.script:
            owner.script.pop(0)(self, content)
        elif not content:
            self.begin(200, 0, **headers)
        else:
            self.extra = headers
            ranged(self, content)
        return True

    def begin(self, status: int, length: int, **headers: str) -> None:
        super().begin(status, length, **{**getattr(self, "extra", {}), **headers})

    def _allowed(self, repository: Repository) -> bool:
        given = self.headers.get("Authorization", "")
        return not repository.gated or given in (f"Bearer {self.server.token}", self.server.jwt)

    def _gate(self, repository: Repository) -> bool:
        """Whether the request was refused."""
        if self._allowed(repository):
            return False
        text = "Access to this repository is restricted: you must have access to it and be authenticated"
        return self.send_json({"error": text}, 401, X_Error_Code="GatedRepo", X_Error_Message=text)

    # Hugging Face ---------------------------------------------------------------------------------------------------

    def _hf(self, method: str, path: str, query: dict[str, str], body: bytes) -> bool:
        if method not in ("GET", "HEAD"):
            return False
        words = path.strip("/").split("/")
        if words[0] == "api" and words[1] in ("models", "datasets") and len(words) == 4:
            words += ["revision", "main"]
        if words[0] == "api" and len(words) >= 6 and words[1] in ("models", "datasets"):
            repository = self.server.find("/".join(words[2:4]), words[1] == "datasets")
            if repository is None or words[4] not in ("revision", "tree"):
                return False
            if words[5] not in ("main", repository.revision):
                return self.send_json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            if words[4] == "revision":
                names = [{"rfilename": name} for name in repository.files]
                answer = {"id": "/".join(words[2:4]), "sha": repository.revision, "siblings": names}
                return self.send_json(answer, X_Repo_Commit=repository.revision)
            return self._gate(repository) or self._tree(repository, path, query)
        dataset = words[0] == "datasets"
        words = words[1:] if dataset else words
        if len(words) < 5 or words[2] != "resolve":
            return False
        repository = self.server.find("/".join(words[:2]), dataset)
        if repository is None or self._gate(repository):
            return repository is not None
        name = "/".join(words[4:])
        content = repository.files.get(name)
        if content is None:
            return self.send_json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        entity = hashlib.sha256(content).hexdigest() if len(content) >= LARGE else git_oid(content)
        large = {"X_Linked_Etag": f'"{entity}"', "X_Linked_Size": str(len(content))} if len(content) >= LARGE else {}
        self.server.etag = f'"{entity}"'
        return self.send_file(content, X_Repo_Commit=repository.revision, ETag=f'"{entity}"', **large)

    def _tree(self, repository: Repository, path: str, query: dict[str, str]) -> bool:
        rows: list[dict[str, Any]] = []
        folders = {name.rsplit("/", 1)[0] for name in repository.files if "/" in name}
        rows += [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        for name, content in repository.files.items():
            row = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
            if len(content) >= LARGE:
                row["oid"] = git_oid(b"pointer " + name.encode())
                row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            rows.append(row)
        start = int(query.get("cursor", 0))
        more = start + PAGE < len(rows)
        link = f'<{self.server.url}{path}?recursive=true&cursor={start + PAGE}>; rel="next"'
        if more:
            return self.send_json(rows[start : start + PAGE], Link=link)
        return self.send_json(rows[start:])

    def _hf_upload(self, method: str, path: str, query: dict[str, str], body: bytes) -> bool:
        owner, words = self.server, path.strip("/").split("/")
        if words[:1] == ["lfs-store"] and method == "PUT":
            owner.objects[words[1]] = body
            return self.send_json({})
        if method != "POST" or words[:2] == ["api", "v1"]:
            return False
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {owner.token}":
            return self.send_json({"error": "Invalid credentials in Authorization header"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            owner.repositories.setdefault(name, Repository(dataset=asked.get("type") == "dataset"))
            return self.send_json({"url": f"{owner.url}/{name}", "name": name})
        if "info/lfs/objects/batch" in path:
            objects = [
                {**item, "actions": {"upload": {"href": f"{owner.url}/lfs-store/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self.send_json({"transfer": "basic", "objects": objects})
        if len(words) != 6 or words[4] not in ("preupload", "commit"):
            return False
        repository = owner.find("/".join(words[2:4]), words[1] == "datasets")
        if repository is None:
            return False
        if words[4] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.send_json({"files": files})
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                repository.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                repository.files[item["value"]["path"]] = owner.objects[item["value"]["oid"]]
        url = f"{owner.url}/{'/'.join(words[2:4])}/commit/{COMMIT}"
        return self.send_json({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})

    # ModelScope -----------------------------------------------------------------------------------------------------

    def _modelscope(self, method: str, path: str, query: dict[str, str], body: bytes) -> bool:
        words = path.strip("/").split("/")
        if words[:2] != ["api", "v1"] or len(words) < 5 or words[2] not in ("models", "datasets"):
            return False
        dataset = words[2] == "datasets"
        repository = self.server.find("/".join(words[3:5]), dataset)
        if repository is None:
            return self.send_json({"Code": 10010205001, "Message": "record not found", "Success": False}, 404)
        if repository.gated and self.headers.get("Authorization", "") != f"Bearer {self.server.token}":
            return self.send_json({"Code": 10990101002, "Message": "未登录或无权限", "Success": False}, 403)
        tail = words[5:]
        if tail == ["repo", "tree" if dataset else "files"]:
            rows = self._entries(repository, query)
            if dataset:
                size, page = int(query["PageSize"]), int(query["PageNumber"])
                rows = rows[(page - 1) * size : page * size]
            else:
                rows = rows[: self.server.limit]
            return self.send_json({"Code": 200, "Data": {"Files": rows}, "Success": True})
        if tail == ["revisions"]:
            branches = [{"Revision": "master", "CreatedAt": 1}]
            return self.send_json({"Code": 200, "Data": {"RevisionMap": {"Branches": branches, "Tags": []}}})
        if tail == ["repo"]:
            content = repository.files.get(query.get("FilePath", ""))
            if content is None:
                return self.send_json({"Code": 404, "Message": "file not found", "Success": False}, 404)
            self.server.etag = f'"{hashlib.md5(content).hexdigest()}"'
            return self.send_file(content)
        if not tail:
            return self.send_json({"Code": 200, "Data": {"Name": words[4], "Path": words[3]}, "Success": True})
        return False

    def _modelscope_upload(self, method: str, path: str, query: dict[str, str], body: bytes) -> bool:
        """Creating a repository, storing large files, committing; {"Data": ...} around every answer."""
        owner, words = self.server, path.strip("/").split("/")
        if words[:2] == ["openapi", "v1"] and len(words) == 5:
            found = owner.find("/".join(words[3:]), words[2] == "datasets")
            answer = {"success": bool(found), "data": {"id": "/".join(words[3:])}, "message": "record not found"}
            return self.send_json(answer, 200 if found else 404)
        if words[:2] != ["api", "v1"] or words[2] not in ("models", "repos") or method != "POST":
            return False
        if self.headers.get("Authorization") != f"Bearer {owner.token}":
            return self.send_json({"Code": 401, "Message": "未登录", "Success": False}, 401)
        if words[2:] == ["models"]:
            asked = json.loads(body)
            owner.repositories[f"{asked['Path']}/{asked['Name']}"] = Repository()
            return self.send_json({"Code": 200, "Data": {"Name": asked["Name"]}, "Success": True})
        if words[2] != "repos" or len(words) < 8:
            return False
        repository = owner.find("/".join(words[4:6]), words[3] == "datasets")
        if repository is None:
            return False
        if words[6:] == ["info", "lfs", "objects", "batch"]:
            objects = [
                {**item, "actions": {"upload": {"href": f"{owner.url}/lfs-store/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self.send_json({"Code": 200, "Data": {"objects": objects}, "Success": True})
        for item in json.loads(body)["actions"]:
            large = item["type"] == "lfs"
            repository.files[item["path"]] = (
                owner.objects[item["sha256"]] if large else base64.b64decode(item["content"])
            )
        return self.send_json({"Code": 200, "Data": {"oid": COMMIT}, "Success": True})

    def _entries(self, repository: Repository, query: dict[str, str]) -> list[dict[str, Any]]:
        root = query.get("Root", "").strip("/")
        rows: dict[str, dict[str, Any]] = {}
        for name, content in repository.files.items():
            if root and not name.startswith(root + "/"):
                continue
            parents = name.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                folder = "/".join(parents[:depth])
                if folder != root and not root.startswith(folder + "/"):
                    rows[folder] = {"Path": folder, "Name": parents[depth - 1], "Type": "tree", "Size": 0, "Sha256": ""}
            digest = hashlib.sha256(content).hexdigest()
            entry = {"Path": name, "Name": name.split("/")[-1], "Type": "blob", "Size": len(content), "Sha256": digest}
            rows[name] = entry | {"Revision": COMMIT, "IsLFS": len(content) >= LARGE}
        if query.get("Recursive") == "False":
            depth = root.count("/") + 1 if root else 0
            return [row for name, row in rows.items() if name.count("/") == depth]
        return list(rows.values())

    # OpenDataLab ----------------------------------------------------------------------------------------------------

    def _opendatalab(self, method: str, path: str, query: dict[str, str], body: bytes) -> bool:
        owner, words = self.server, path.strip("/").split("/")
        if path.endswith("/open/auth"):
            return self._signed({"nonce": "n-1", "algorithm": "HmacSHA256"})
        if path.endswith("/open/getJwt"):
            mark = base64.b64encode(hmac.new(b"secret", b"n-1", "sha256").digest()).decode()
            if json.loads(body)["d"] != mark:
                return self.send_json({"msgCode": "10000", "data": {"msgCode": "10002", "msg": "wrong signature"}})
            return self._signed({"jwt": owner.jwt})
        if words[:4] == ["datasets", "api", "v2", "datasets"] and words[5:] == ["r", "main"]:
            repository = owner.find(words[4].replace(",", "/"), True)
            if repository is None:
                return False
            rows = [
                {
                    "path": f"/{name}",
                    "size": len(content),
                    "dataset_id": 77,
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
                for name, content in repository.files.items()
            ]
            start = int(query.get("after", 0))
            more = start + PAGE < len(rows)
            page = {
                "list": rows[start : start + PAGE],
                "hasNext": more,
                "after": str(start + PAGE),
                "hasMediaFile": True,
            }
            return self.send_json({"data": page})
        if words[:2] == ["datasets", "resolve"] and words[2] == "77" and method == "GET":
            if self.headers.get("Authorization") != owner.jwt:
                return self.send_json({"msg": "please log in"}, 401)
            name = "/".join(words[4:])
            self.begin(302, 0, Location=f"/signed/{quote(name)}")
            return True
        if words[0] == "signed":
            found = [
                r.files["/".join(words[1:])] for r in owner.repositories.values() if "/".join(words[1:]) in r.files
            ]
            return bool(found) and self.send_file(found[0])
        return False

    def _signed(self, data: dict[str, str]) -> bool:
        return self.send_json({"msgCode": "10000", "data": {"msgCode": "10000", "data": data}})


class ProtocolServer(LoopbackServer):
    """`repositories` by OWNER/NAME; `token` and `jwt` open the gated ones; `limit` is ModelScope's longest listing."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = _Protocol
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.token, self.jwt, self.limit = "tok", "jwt-1", 3000

    def find(self, name: str, dataset: bool) -> Repository | None:
        found = self.repositories.get(name)
        return found if found and found.dataset == dataset else None
