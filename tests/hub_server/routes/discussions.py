"""Discussions and pull requests of a repository."""

from typing import Any

from ..base import HubError, timestamp
from ..repository import MAIN, Discussion, Repo
from ..routing import Call, Routes

routes = Routes()


def describe(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "title": discussion.title,
        "num": discussion.num,
        "author": {"name": discussion.author},
        "createdAt": timestamp(discussion.date),
        "status": discussion.status,
        "repo": {"name": repo.id, "type": repo.type},
        "isPullRequest": discussion.is_pull_request,
    }


@routes.on("GET", "/api/{kind}s/{repo}/discussions", "see")
def list_discussions(call: Call, repo: Repo) -> dict[str, Any]:
    wanted = call.request.option("type", "all")
    found = [d for d in repo.discussions if wanted == "all" or d.is_pull_request == (wanted == "pull_request")]
    status, author = call.request.option("status", "all"), call.request.option("author")
    if status != "all":
        found = [d for d in found if (d.status in ("open", "draft")) == (status == "open")]
    found = [describe(repo, d) for d in found if author in ("", d.author)]
    start = 10 * int(call.request.option("p", "0"))
    return {"discussions": found[start : start + 10], "start": start, "count": len(found)}


@routes.on("POST", "/api/{kind}s/{repo}/discussions", "propose")
def open_discussion(call: Call, repo: Repo) -> dict[str, Any]:
    body, author = call.request.json(), call.caller.account().name
    if len(body["title"]) < 3:
        raise HubError(400, "The title must have at least 3 characters")
    if body.get("pullRequest"):
        discussion = repo.open_discussion(body["title"], author, "draft", base=repo.resolve(MAIN))
    else:
        discussion = repo.open_discussion(body["title"], author)
    discussion.comment(author, body["description"])
    return describe(repo, discussion)


@routes.on("GET", "/api/{kind}s/{repo}/discussions/{num}", "see")
def details(call: Call, repo: Repo, num: str) -> dict[str, Any]:
    discussion = repo.discussion(int(num))
    described = {**describe(repo, discussion), "events": discussion.events}
    if discussion.is_pull_request:
        is_open = discussion.status in ("open", "draft")
        described["filesWithConflicts"] = repo.conflicts(discussion) if is_open else []
        described["changes"] = {"base": MAIN, "mergeCommitId": discussion.merge_commit}
    return described


@routes.on("POST", "/api/{kind}s/{repo}/discussions/{num}/comment", "propose")
def comment(call: Call, repo: Repo, num: str) -> dict[str, Any]:
    event = repo.discussion(int(num)).comment(call.caller.account().name, call.request.json()["comment"])
    return {"newMessage": event}


@routes.on("POST", "/api/{kind}s/{repo}/discussions/{num}/status", "propose")
def change_status(call: Call, repo: Repo, num: str) -> dict[str, Any]:
    discussion, name = repo.discussion(int(num)), call.caller.account().name
    if name != discussion.author:
        call.hub.check_namespace(call.caller, repo.namespace)
    if discussion.status == "merged":
        raise HubError(400, "A merged pull request cannot change its status")
    return {"newStatus": discussion.change_status(name, call.request.json()["status"])}


@routes.on("POST", "/api/{kind}s/{repo}/discussions/{num}/merge", "write")
def merge(call: Call, repo: Repo, num: str) -> dict[str, Any]:
    discussion = repo.discussion(int(num))
    if not discussion.is_pull_request or discussion.status != "open":
        raise HubError(400, f"Discussion {num} is not an open pull request (status: {discussion.status})")
    merged = repo.merge(discussion, call.caller.account().name)
    return {"mergeCommitId": merged.oid}
