"""Accounts, and repositories as a whole: create, settings, page, search, delete."""

import json
from typing import Any, cast

from .. import cards
from ..base import timestamp
from ..repository import MAIN, Commit, Repo, RepoType
from ..routing import Call, Routes
from ..wire import Response

routes = Routes()
pages = Routes()  # patterns that end in a repository's name, which could hide the more precise ones: tried last

SUMMARY = ("id", "private", "tags", "downloads", "likes", "library_name", "pipeline_tag", "createdAt")
"""What a search tells of each model unless more is asked for."""


@routes.on("GET", "/api/whoami-v2")
def whoami(call: Call) -> dict[str, Any]:
    user = call.caller.account()
    return {
        "type": "user",
        "id": user.name,
        "name": user.name,
        "fullname": user.name,
        "orgs": [{"type": "org", "name": name} for name in user.orgs],
        "auth": {"type": "access_token", "accessToken": {"displayName": "tests", "role": call.caller.role}},
    }


@routes.on("GET", "/api/agent-harnesses")
def agent_harnesses(call: Call) -> dict[str, Any]:
    return {"standardEnvVars": [], "harnesses": {}}


@routes.on("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Response:
    card = call.request.json()["content"]
    errors = [{"message": problem} for problem in cards.problems(card)]
    warnings = []
    if not errors and not cards.metadata(card):
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    return Response.json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def named_in(call: Call) -> tuple[RepoType, str]:
    """The type and id of the repository that the body of a request names."""
    body = call.request.json()
    namespace = body.get("organization") or call.caller.account().name
    return cast(RepoType, body.get("type") or "model"), f"{namespace}/{body['name']}"


@routes.on("POST", "/api/repos/create")
def create_repo(call: Call) -> dict[str, Any]:
    kind, repo_id = named_in(call)
    body = call.request.json()
    private = body.get("visibility") == "private" or body.get("private") is True
    repo = call.hub.create_repo(call.caller, kind, repo_id, private)
    return {"url": f"{call.hub.endpoint}/{repo.url_path}", "name": repo.id, "id": repo.id}


@routes.on("DELETE", "/api/repos/delete")
def delete_repo(call: Call) -> dict[str, Any]:
    kind, repo_id = named_in(call)
    call.hub.delete_repo(call.hub.open_repo(call.caller, kind, repo_id, "write"))
    return {}


@routes.on("PUT", "/api/{kind}s/{repo}/settings", "write")
def change_settings(call: Call, repo: Repo) -> dict[str, Any]:
    body = call.request.json()
    repo.gated = body.get("gated", repo.gated)
    if "visibility" in body:
        repo.private = body["visibility"] == "private"
    return {"private": repo.private, "gated": repo.gated}


@routes.on("POST", "/api/{kind}s/{repo}/user-access-request/grant", "write")
def grant_access(call: Call, repo: Repo) -> dict[str, Any]:
    repo.admitted.add(call.request.json()["user"])
    return {}


@routes.on("GET", "/api/{kind}s/{repo}/auth-check", "download")
def may_read(call: Call, repo: Repo) -> dict[str, Any]:
    return {}


@routes.on("GET", "/api/{kind}s/{repo}/auth-check/write", "write")
def may_write(call: Call, repo: Repo) -> dict[str, Any]:
    return {}


@routes.on("GET", "/api/{kind}s")
def search(call: Call, kind: str) -> Response:
    """The repositories of a kind that the caller sees and that match every filter, a page at a time."""
    wanted, author = set(call.request.query.get("filter", [])), call.request.option("author")
    text, pipeline_tag = call.request.option("search").lower(), call.request.option("pipeline_tag")
    found = [
        info
        for repo in call.hub.repos.values()
        if repo.type == kind and call.hub.visible(call.caller, repo)
        if author in ("", repo.namespace) and text in repo.id.lower()
        for info in [describe(repo, repo.resolve(MAIN))]
        if wanted <= set(info["tags"]) and pipeline_tag in ("", info["pipeline_tag"])
    ]
    sort = call.request.option("sort", "lastModified")
    found.sort(key=lambda info: info.get(sort) or 0, reverse=True)
    if not call.request.flag("full") and "expand" not in call.request.query:
        keys = (*SUMMARY, "cardData") if call.request.flag("cardData") else SUMMARY
        found = [{key: info[key] for key in keys} for info in found]
    return call.page([expanded(call, info) for info in found], int(call.request.option("limit", "1000")))


@pages.on("GET", "/api/{kind}s/{repo}/revision/{revision}", "see")
@pages.on("GET", "/api/{kind}s/{repo}", "see")
def info(call: Call, repo: Repo, revision: str = "main") -> dict[str, Any]:
    return expanded(call, describe(repo, repo.resolve(revision), blobs=call.request.flag("blobs")))


def describe(repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    """All that the page of a repository tells about it at a commit; with the sizes and hashes of files on request."""
    files = commit.files
    try:
        card = cards.metadata(files["README.md"].data.decode()) if "README.md" in files else {}
    except cards.InvalidCard:
        card = {}
    tags = cards.tags(card)
    if any(path.endswith(".safetensors") for path in files):
        tags.append("safetensors")
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)]
    if blobs:
        for sibling in siblings:
            blob = files[sibling["rfilename"]]
            sibling |= {"size": len(blob.data), "blobId": blob.git_oid}
            if blob.is_lfs:
                sibling["lfs"] = {"size": len(blob.data), "sha256": blob.sha256, "pointerSize": len(blob.stored)}
    return {
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": timestamp(repo.created),
        "lastModified": timestamp(commit.date),
        "tags": [*tags, "region:us"],
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": json.loads(json.dumps(card, default=str)),  # YAML has dates, JSON has not
        "model-index": card.get("model-index"),
        "siblings": siblings,
    }


def expanded(call: Call, described: dict[str, Any]) -> dict[str, Any]:
    """Of a description, the id and the keys that the query's `expand` asks for; all of it without `expand`."""
    keys = call.request.query.get("expand")
    return {key: described.get(key) for key in ("id", *keys)} if keys else described
