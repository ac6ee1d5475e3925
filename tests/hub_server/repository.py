"""A repository: files, commits, the references that name them, discussions and pull requests. No HTTP here."""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from .base import HubError, now, timestamp

RepoType = Literal["model", "dataset", "space"]
MAIN = "refs/heads/main"
GITATTRIBUTES = b"".join(
    b"*.%s filter=lfs diff=lfs merge=lfs -text\n" % extension
    for extension in (b"arrow", b"bin", b"gz", b"npy", b"npz", b"parquet", b"pkl", b"pt", b"safetensors", b"zip")
)
"""What the Hub puts into every new repository: the patterns of files that are stored in LFS."""


@dataclass(frozen=True)
class Blob:
    """The content of a file, kept in git or, behind a pointer, in LFS."""

    data: bytes
    is_lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def stored(self) -> bytes:
        """What git itself holds: the data, or the pointer to it."""
        if not self.is_lfs:
            return self.data
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
            self.sha256.encode(),
            len(self.data),
        )

    @cached_property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.stored) + self.stored).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files, and how it came to be."""

    files: Mapping[str, Blob]
    title: str
    author: str
    description: str = ""
    parent: str | None = None
    date: datetime = field(default_factory=now)

    @cached_property
    def oid(self) -> str:
        tree = sorted((path, blob.git_oid) for path, blob in self.files.items())
        identity = [tree, self.title, self.author, self.description, self.parent, timestamp(self.date)]
        return hashlib.sha1(json.dumps(identity).encode()).hexdigest()


@dataclass
class Discussion:
    """A discussion, or with `is_pull_request` a pull request whose changes live at `refs/pr/{num}`."""

    num: int
    title: str
    author: str
    is_pull_request: bool
    status: str
    base: str  # the commit that a pull request starts from
    date: datetime = field(default_factory=now)
    merge_commit: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"

    def record(self, kind: str, author: str, **data: Any) -> dict[str, Any]:
        """Append an event of `kind` (comment, commit, status-change) to the thread, and return it."""
        event = {
            "id": secrets.token_hex(12),
            "type": kind,
            "createdAt": timestamp(now()),
            "author": {"name": author},
            "data": data,
        }
        self.events.append(event)
        return event

    def comment(self, author: str, text: str) -> dict[str, Any]:
        latest = {"raw": text, "html": text, "updatedAt": timestamp(now()), "author": {"name": author}}
        return self.record("comment", author, edited=False, hidden=False, latest=latest, history=[])

    def change_status(self, author: str, status: str) -> dict[str, Any]:
        self.status = status
        return self.record("status-change", author, status=status)


@dataclass
class Repo:
    """A repository: commits, the references that name them, and its discussions."""

    type: RepoType
    id: str
    private: bool = False
    gated: Literal["auto", "manual", False] = False
    created: datetime = field(default_factory=now)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)
    lfs_oids: set[str] = field(default_factory=set)  # the large files that were uploaded for this repository
    admitted: set[str] = field(default_factory=set)  # the users who may pass the gate

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def url_path(self) -> str:
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def find_ref(self, revision: str) -> str | None:
        """The full name of the branch, tag or pull request that `revision` names."""
        candidates = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((ref for ref in candidates if ref in self.refs), None)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request or commit hash names; 404 if none."""
        ref = self.find_ref(revision)
        oid = self.refs[ref] if ref else revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def add_commit(self, ref: str, commit: Commit) -> Commit:
        """Store `commit` and let `ref` name it."""
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    def history(self, commit: Commit) -> Iterator[Commit]:
        """`commit` and its ancestors, newest first."""
        oid: str | None = commit.oid
        while oid:
            yield self.commits[oid]
            oid = self.commits[oid].parent

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The newest commit, from `commit` backwards, that changed the file or folder at `path`."""

        def content(of: Commit) -> dict[str, Blob]:
            return {name: blob for name, blob in of.files.items() if name == path or name.startswith(f"{path}/")}

        newest = commit
        for older in self.history(commit):
            if content(older) != content(commit):
                break
            newest = older
        return newest

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What people put there: the content of every file at `revision` but `.gitattributes`. For tests."""
        files = self.resolve(revision).files
        return {path: blob.data for path, blob in files.items() if path != ".gitattributes"}

    def discussion(self, num: int) -> Discussion:
        if not 1 <= num <= len(self.discussions):
            raise HubError(404, f"Discussion {num} not found")
        return self.discussions[num - 1]

    def open_discussion(self, title: str, author: str, status: str = "open", base: Commit | None = None) -> Discussion:
        """Start a discussion, or, given the commit it starts from, a pull request."""
        num = len(self.discussions) + 1
        discussion = Discussion(num, title, author, base is not None, status, base.oid if base else "")
        self.discussions.append(discussion)
        if base:
            self.refs[discussion.ref] = base.oid
        return discussion

    def conflicts(self, pull_request: Discussion) -> list[str]:
        """The paths that a pull request and main changed in different ways since it was opened."""
        base = self.commits[pull_request.base].files
        theirs, ours = self.resolve(pull_request.ref).files, self.resolve(MAIN).files
        paths = sorted({*base, *theirs, *ours})
        return [p for p in paths if base.get(p) not in (theirs.get(p), ours.get(p)) and theirs.get(p) != ours.get(p)]

    def merge(self, pull_request: Discussion, author: str) -> Commit:
        """Squash the changes of a pull request into one commit on main; 409 on a conflict."""
        if conflicts := self.conflicts(pull_request):
            raise HubError(409, f"Cannot merge: conflicts in {', '.join(conflicts)}")
        base, theirs = self.commits[pull_request.base].files, self.resolve(pull_request.ref).files
        head = self.resolve(MAIN)
        files = {path: blob for path, blob in head.files.items() if path in theirs or path not in base}
        files |= {path: blob for path, blob in theirs.items() if blob != base.get(path)}
        title = f"{pull_request.title} (#{pull_request.num})"
        merged = self.add_commit(MAIN, Commit(files, title, author, parent=head.oid))
        pull_request.merge_commit = merged.oid
        pull_request.change_status(author, "merged")
        return merged
