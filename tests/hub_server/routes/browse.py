"""What is in a repository at a revision: files and folders, downloads, history, branches and tags."""

import hashlib
from typing import Any

from ..base import HubError, timestamp
from ..repository import Commit, Repo
from ..routing import Call, Routes
from ..signing import signed_url
from ..wire import Response

routes = Routes()

PAGE_SIZE, EXPANDED_PAGE_SIZE = 1000, 50


def folders(commit: Commit) -> dict[str, str]:
    """All folders at a commit, and a hash of what each holds."""
    hashes: dict[str, Any] = {}
    for path, blob in sorted(commit.files.items()):
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = hashes.setdefault("/".join(parts[:depth]), hashlib.sha1())
            folder.update(f"{path} {blob.git_oid}\n".encode())
    return {path: folder.hexdigest() for path, folder in hashes.items()}


def node(repo: Repo, commit: Commit, path: str, folder_oid: str | None, expand: bool) -> dict[str, Any]:
    """A file, or with `folder_oid` a folder, as the listings show it."""
    if folder_oid:
        shown: dict[str, Any] = {"type": "directory", "path": path, "oid": folder_oid, "size": 0}
    else:
        blob = commit.files[path]
        shown = {"type": "file", "path": path, "oid": blob.git_oid, "size": len(blob.data)}
        if blob.is_lfs:
            shown["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.stored)}
    if expand:
        change = repo.last_change(commit, path)
        shown["lastCommit"] = {"id": change.oid, "title": change.title, "date": timestamp(change.date)}
    return shown


@routes.on("GET", "/api/{kind}s/{repo}/tree/{revision}", "see")
@routes.on("GET", "/api/{kind}s/{repo}/tree/{revision}/{path}", "see")
def tree(call: Call, repo: Repo, revision: str, path: str = "") -> Response:
    commit = repo.resolve(revision)
    directories = folders(commit)
    if path and path not in directories:
        raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
    prefix = f"{path}/" if path else ""
    inside = [name for name in sorted({*commit.files, *directories}) if name.startswith(prefix)]
    if not call.request.flag("recursive"):
        inside = [name for name in inside if "/" not in name.removeprefix(prefix)]
    expand = call.request.flag("expand")
    nodes = [node(repo, commit, name, directories.get(name), expand) for name in inside]
    return call.page(nodes, EXPANDED_PAGE_SIZE if expand else PAGE_SIZE)


@routes.on("POST", "/api/{kind}s/{repo}/paths-info/{revision}", "see")
def paths_info(call: Call, repo: Repo, revision: str) -> list[dict[str, Any]]:
    """The files and folders among the asked paths; what does not exist is left out."""
    commit, form = repo.resolve(revision), call.request.form()
    directories = folders(commit)
    expand = form.get("expand") == ["true"]
    paths = [path for path in form.get("paths", []) if path in commit.files or path in directories]
    return [node(repo, commit, path, directories.get(path), expand) for path in paths]


@routes.on("GET", "/{prefix}{repo}/resolve/{revision}/{path}", "download")
def resolve(call: Call, repo: Repo, revision: str, path: str) -> Response:
    """A file; a large one by a redirect to the storage, with what the client wants to know of it in the headers."""
    commit = repo.resolve(revision)
    headers = {"X-Repo-Commit": commit.oid}
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", headers)
    blob = commit.files[path]
    if not blob.is_lfs:
        return Response.file(call.request, blob.data, {**headers, "ETag": f'"{blob.git_oid}"'})
    linked = {"X-Linked-Size": str(len(blob.data)), "X-Linked-Etag": f'"{blob.sha256}"'}
    location = signed_url(call.hub, f"/objects/{blob.sha256}")
    return Response(302, b"", {**headers, **linked, "Location": location})


@routes.on("GET", "/api/{kind}s/{repo}/commits/{revision}", "see")
def commits(call: Call, repo: Repo, revision: str) -> Response:
    log = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.description,
            "authors": [{"user": commit.author}],
            "date": timestamp(commit.date),
        }
        for commit in repo.history(repo.resolve(revision))
    ]
    return call.page(log, EXPANDED_PAGE_SIZE)


@routes.on("GET", "/api/{kind}s/{repo}/refs", "see")
def refs(call: Call, repo: Repo) -> dict[str, Any]:
    def named(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in repo.refs.items()
            if ref.startswith(prefix)
        ]

    listing = {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": []}
    return {**listing, "pullRequests": named("refs/pr/")} if call.request.flag("include_prs") else listing


def add_ref(repo: Repo, ref: str, revision: str) -> dict[str, Any]:
    if ref in repo.refs:
        raise HubError(409, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.resolve(revision).oid
    return {}


def delete_ref(repo: Repo, ref: str) -> dict[str, Any]:
    if ref not in repo.refs:
        raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
    del repo.refs[ref]
    return {}


@routes.on("POST", "/api/{kind}s/{repo}/branch/{branch}", "write")
def create_branch(call: Call, repo: Repo, branch: str) -> dict[str, Any]:
    return add_ref(repo, f"refs/heads/{branch}", call.request.json().get("startingPoint", "main"))


@routes.on("DELETE", "/api/{kind}s/{repo}/branch/{branch}", "write")
def delete_branch(call: Call, repo: Repo, branch: str) -> dict[str, Any]:
    if branch == "main":
        raise HubError(403, "The branch main cannot be deleted")
    return delete_ref(repo, f"refs/heads/{branch}")


@routes.on("POST", "/api/{kind}s/{repo}/tag/{revision}", "write")
def create_tag(call: Call, repo: Repo, revision: str) -> dict[str, Any]:
    return add_ref(repo, f"refs/tags/{call.request.json()['tag']}", revision)


@routes.on("DELETE", "/api/{kind}s/{repo}/tag/{tag}", "write")
def delete_tag(call: Call, repo: Repo, tag: str) -> dict[str, Any]:
    return delete_ref(repo, f"refs/tags/{tag}")
