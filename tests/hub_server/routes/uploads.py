"""Putting files into a repository: how each is to be sent, the LFS protocol, and the commit."""

import base64
import codecs
import json
import re
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

from .. import cards
from ..base import HubError
from ..repository import Blob, Commit, Discussion, Repo
from ..routing import Call, Routes
from ..signing import signed_url

routes = Routes()

REGULAR_LIMIT = 10 * 2**20  # bytes: larger files go to LFS whatever they are
PREUPLOAD_LIMIT = 256  # files in one request


def check_may_commit(call: Call, repo: Repo, ref: str | None, as_pull_request: bool) -> None:
    """Anyone may open a pull request and add to his own; only members with a write token change branches."""
    if as_pull_request:
        return
    own = any(d.is_pull_request and d.ref == ref and d.author == call.caller.account().name for d in repo.discussions)
    if not own and not call.caller.may_write(repo.namespace):
        raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")


def branch(repo: Repo, revision: str) -> str:
    """The full name of the branch or pull request that can be committed to; 404 if there is none."""
    ref = repo.find_ref(revision)
    if ref is None or ref.startswith("refs/tags/"):
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return ref


@routes.on("POST", "/api/{kind}s/{repo}/preupload/{revision}", "propose")
def preupload(call: Call, repo: Repo, revision: str) -> dict[str, Any]:
    """Says of each file whether it goes through LFS, and its present hash, by which the client finds it unchanged."""
    ref = branch(repo, revision)
    check_may_commit(call, repo, ref, call.request.flag("create_pr"))
    files, present = call.request.json()["files"], repo.resolve(ref).files
    if len(files) > PREUPLOAD_LIMIT:
        raise HubError(400, f"At most {PREUPLOAD_LIMIT} files at once, got {len(files)}")
    attributes = present[".gitattributes"].data.decode() if ".gitattributes" in present else ""
    answers = []
    for file in files:
        large = file["size"] > REGULAR_LIMIT or is_binary(base64.b64decode(file["sample"]))
        lfs = large or tracked_by_lfs(attributes, file["path"])
        answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if blob := present.get(file["path"]):
            answer["oid"] = blob.sha256 if blob.is_lfs else blob.git_oid
        answers.append(answer)
    return {"files": answers}


def tracked_by_lfs(attributes: str, path: str) -> bool:
    """Whether a line of `.gitattributes` sends the path to LFS."""
    lines = [line.split() for line in attributes.splitlines() if "filter=lfs" in line]
    return any(fnmatch(path, words[0]) or fnmatch(path.split("/")[-1], words[0]) for words in lines)


def is_binary(sample: bytes) -> bool:
    """Whether the beginning of a file, which may end inside a character, is no text."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True
    return b"\0" in sample


@routes.on("POST", "/{prefix}{repo}.git/info/lfs/objects/batch", "propose")
def lfs_batch(call: Call, repo: Repo) -> dict[str, Any]:
    """Where to send each large file: nowhere if the repository has it."""
    body = call.request.json()
    if "ref" in body:  # left out by a client that opens a pull request
        check_may_commit(call, repo, branch(repo, body["ref"]["name"]), as_pull_request=False)
    return {"transfer": "basic", "objects": [upload_actions(call, repo, **asked) for asked in body["objects"]]}


def upload_actions(call: Call, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"oid": oid, "size": size}
    if not re.fullmatch("[0-9a-f]{64}", oid):
        return {**answer, "error": {"code": 422, "message": f"not a sha256: {oid!r}"}}
    if oid in repo.lfs_oids:
        return answer
    hub = call.hub
    upload: dict[str, Any] = {"href": signed_url(hub, f"/objects/{oid}")}
    if hub.part_size and size > hub.part_size:
        hub.parts.pop(oid, None)
        urls = [signed_url(hub, f"/objects/{oid}/parts/{i + 1}") for i in range(-(-size // hub.part_size))]
        header = {"chunk_size": str(hub.part_size), **{f"{i + 1:05d}": url for i, url in enumerate(urls)}}
        upload = {"href": signed_url(hub, f"/objects/{oid}/complete"), "header": header}
    verify = {"href": f"{hub.endpoint}/api/{repo.type}s/{repo.id}/lfs/verify"}
    return {**answer, "actions": {"upload": upload, "verify": verify}}


@routes.on("POST", "/api/{kind}s/{repo}/lfs/verify", "propose")
def lfs_verify(call: Call, repo: Repo) -> dict[str, Any]:
    """Count a large file as the repository's, if it arrived whole."""
    oid, size = call.request.json()["oid"], call.request.json()["size"]
    data = call.hub.objects.get(oid)
    if data is None or len(data) != size:
        raise HubError(422, f"{oid} was not uploaded, or does not have {size} bytes")
    repo.lfs_oids.add(oid)
    return {}


@routes.on("POST", "/api/{kind}s/{repo}/commit/{revision}", "propose")
def commit(call: Call, repo: Repo, revision: str) -> dict[str, Any]:
    """All operations of the body in one commit, or none; with `create_pr` as a new pull request."""
    lines = [json.loads(line) for line in call.request.body.splitlines()]
    if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
        raise HubError(400, "The first line must be a header with a summary")
    header, as_pull_request = lines[0]["value"], call.request.flag("create_pr")
    ref, author = branch(repo, revision), call.caller.account().name
    check_may_commit(call, repo, ref, as_pull_request)
    parent = repo.resolve(ref)
    if wanted := header.get("parentCommit"):
        if as_pull_request:
            parent = repo.resolve(wanted)
        elif wanted != parent.oid:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(parent.files)
    for line in lines[1:]:
        apply(call, repo, files, line["key"], line["value"])
    check_files(files)

    new = Commit(files, header["summary"], author, header.get("description", ""), parent.oid)
    urls = {"commitOid": new.oid, "commitUrl": f"{call.hub.endpoint}/{repo.url_path}/commit/{new.oid}"}
    pull_request: Discussion | None = None
    if as_pull_request:
        pull_request = repo.open_discussion(new.title, author, base=parent)
        pull_request.comment(author, new.description)
        urls["pullRequestUrl"] = f"{call.hub.endpoint}/{repo.url_path}/discussions/{pull_request.num}"
        ref = pull_request.ref
    elif ref.startswith("refs/pr/"):
        pull_request = repo.discussion(int(ref.removeprefix("refs/pr/")))
    repo.add_commit(ref, new)
    if pull_request:
        pull_request.record("commit", author, subject=new.title, oid=new.oid)
    return urls


def apply(call: Call, repo: Repo, files: dict[str, Blob], operation: str, value: dict[str, Any]) -> None:
    """Do one operation of a commit to `files`."""
    path = value["path"].rstrip("/") if operation == "deletedFolder" else value["path"]
    check_path(path)
    if operation == "file":
        data = base64.b64decode(value["content"])
        if len(data) > REGULAR_LIMIT:
            raise HubError(400, f"{path} is larger than {REGULAR_LIMIT} bytes: use LFS")
        files[path] = Blob(data)
    elif operation == "lfsFile":
        if value["oid"] not in repo.lfs_oids:
            raise HubError(400, f"LFS pointer of {path} points to a file that does not exist: {value['oid']}")
        files[path] = Blob(call.hub.objects[value["oid"]], is_lfs=True)
    elif operation in ("deletedFile", "deletedFolder"):
        gone = [path] if operation == "deletedFile" else [name for name in files if name.startswith(f"{path}/")]
        if not gone or not files.keys() >= set(gone):
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation: {operation}")


def check_path(path: str) -> None:
    """Refuse a path that leads out of the repository or into git's own folder."""
    segments = path.split("/")
    if any(segment in ("", ".", "..", ".git") for segment in segments) or "\\" in path or "\0" in path:
        raise HubError(400, f"Invalid path: {path!r}")


def check_files(files: dict[str, Blob]) -> None:
    """Refuse a tree in which a name is both file and folder, or whose README.md has invalid metadata."""
    for path in files:
        for folder in PurePosixPath(path).parents:
            if str(folder) in files:
                raise HubError(400, f"{folder} is a file and cannot hold {path}")
    if "README.md" in files and (found := cards.problems(files["README.md"].data.decode(errors="replace"))):
        raise HubError(400, "Invalid metadata in README.md: " + "; ".join(found))
