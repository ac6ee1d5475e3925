"""What a Hub holds: users, repositories, collections; and who may do what with them. No HTTP here."""

import re
import secrets
import threading
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from .base import HubError, now
from .repository import GITATTRIBUTES, MAIN, Blob, Commit, Repo, RepoType

Access = Literal["see", "download", "propose", "write"]
"""What a caller wants of a repository.

`see` its page and listings, `download` its files (a gate may stand before them), `propose` a change or a discussion
(any account may, on a repository it sees), `write` to its branches and settings.
"""


@dataclass(frozen=True)
class User:
    """An account, a member of `orgs`, with one token that may write and one that may only read."""

    name: str
    orgs: tuple[str, ...] = ()

    @property
    def write_token(self) -> str:
        return f"hf_{self.name}_write"

    @property
    def read_token(self) -> str:
        return f"hf_{self.name}_read"

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.orgs)


@dataclass(frozen=True)
class Caller:
    """Who sent a request: nobody, or a user with a token of some role."""

    user: User | None = None
    role: Literal["read", "write"] = "read"

    def belongs_to(self, namespace: str) -> bool:
        return self.user is not None and namespace in self.user.namespaces

    def may_write(self, namespace: str) -> bool:
        return self.belongs_to(namespace) and self.role == "write"

    def account(self) -> User:
        """The user; 401 for an anonymous caller."""
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user


@dataclass
class CollectionItem:
    type: str
    id: str
    note: str | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass
class Collection:
    """A list of repositories on one page."""

    slug: str
    title: str
    owner: str
    private: bool = False
    description: str | None = None
    updated: datetime = field(default_factory=now)
    items: list[CollectionItem] = field(default_factory=list)


@dataclass
class Hub:
    """All accounts, repositories, collections and large files.

    Attributes:
        endpoint: URL of the Hub itself.
        storage: URL of the origin that large files go to and come from; it knows no accounts, only signed URLs.
        part_size: Large files above this many bytes are uploaded in parts of this size; None: always in one piece.
        objects: Large files by sha256.
        parts: Unfinished uploads in parts: sha256, then number of the part (from 1).
    """

    endpoint: str
    storage: str
    part_size: int | None = None
    users: dict[str, User] = field(default_factory=dict)
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    signing_key: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    lock: Any = field(default_factory=threading.RLock)

    def identify(self, token: str | None) -> Caller:
        """Whose token this is; 401 for a token that is nobody's."""
        if token is None:
            return Caller()
        for user in self.users.values():
            if token == user.write_token:
                return Caller(user, "write")
            if token == user.read_token:
                return Caller(user, "read")
        raise HubError(401, "Invalid credentials in Authorization header")

    def check_namespace(self, caller: Caller, namespace: str) -> None:
        """403 unless the caller may create and change things in `namespace`."""
        if not caller.may_write(namespace):
            name = caller.account().name
            raise HubError(403, f"You don't have the rights to write in the namespace {namespace!r} as {name!r}")

    def create_repo(self, caller: Caller, kind: RepoType, repo_id: str, private: bool = False) -> Repo:
        """A new repository whose first commit holds `.gitattributes`; 409 if it exists."""
        namespace, name = repo_id.split("/")
        self.check_namespace(caller, namespace)
        if not re.fullmatch(r"(?!.*(--|\.\.))[\w-][\w.-]{0,95}", name, re.ASCII) or name.endswith((".git", ".")):
            raise HubError(400, f"Invalid repository name: {name!r}")
        if (kind, repo_id) in self.repos:
            url = f"{self.endpoint}/{self.repos[kind, repo_id].url_path}"
            raise HubError(409, f"You already created this {kind} repo", url=url, name=repo_id)
        repo = Repo(kind, repo_id, private)
        initial = Commit({".gitattributes": Blob(GITATTRIBUTES)}, "initial commit", caller.account().name)
        repo.add_commit(MAIN, initial)
        self.repos[kind, repo_id] = repo
        return repo

    def delete_repo(self, repo: Repo) -> None:
        del self.repos[repo.type, repo.id]
        for collection in self.collections.values():
            collection.items = [item for item in collection.items if (item.type, item.id) != (repo.type, repo.id)]

    def visible(self, caller: Caller, repo: Repo) -> bool:
        return not repo.private or caller.belongs_to(repo.namespace)

    def open_repo(self, caller: Caller, kind: str, repo_id: str, access: Access) -> Repo:
        """The repository, if the caller may have such access to it.

        Raises:
            HubError: 404 if it does not exist or is hidden from the caller (401 if the caller is nobody: the Hub
                suggests to log in), 401 or 403 if it may be seen but not used so.
        """
        repo = self.repos.get((kind, repo_id))
        if repo is None or not self.visible(caller, repo):
            raise HubError(404 if caller.user else 401, "Repository not found", "RepoNotFound")
        if access == "write":
            self.check_namespace(caller, repo.namespace)
        elif access == "propose":
            caller.account()
        elif access == "download" and repo.gated and not caller.belongs_to(repo.namespace):
            if caller.user is None or caller.user.name not in repo.admitted:
                raise HubError(403 if caller.user else 401, f"Access to {kind} {repo_id} is restricted", "GatedRepo")
        return repo
