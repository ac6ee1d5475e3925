"""One push to one repository: opened, read and committed to at a single state, so that nothing is lost or torn."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    GitRefInfo,
    HfApi,
    RepoFile,
)
from huggingface_hub.utils import validate_repo_id

from hfsae.hub.backoff import Backoff
from hfsae.hub.errors import PushError, explained, usable_token
from hfsae.hub.metadata import LIBRARY


@dataclass(frozen=True)
class Destination:
    """Where a push goes, and how.

    Args:
        repo_id: `"org/gpt2-l8-16x"`.
        revision: Branch to commit to, made when missing; None for main.
        create_pr: Whether to open a pull request instead.
        private: Whether a repository that is made here is private; None does as the namespace does by default.
        token: A token, instead of the one that `hf auth login` stored; False for none.
        tag: A name for the commit.
        commit_message: Title of the commit.
        retries: How often a request that failed for a passing reason is repeated.

    Raises:
        ValueError: If these contradict each other; no message repeats the token.
    """

    repo_id: str
    revision: str | None = None
    create_pr: bool = False
    private: bool | None = None
    token: str | bool | None = field(default=None, repr=False)
    tag: str | None = None
    commit_message: str | None = None
    retries: int = 5

    def __post_init__(self):
        validate_repo_id(self.repo_id)
        if self.tag and self.create_pr:
            raise ValueError("a tag names a commit of a branch: merge the pull request first, then tag it.")
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, got {self.retries}.")
        usable_token(self.token)

    def titled(self, commit_message: str) -> "Destination":
        """The same with another title of the commit."""
        return replace(self, commit_message=commit_message)


def refuse_stranger(destination: Destination) -> None:
    """Refuses a push for which there is no network or no known token, before work for it begins; makes nothing.

    Raises:
        PushError: If the Hub does not answer, or does not know who asks.
    """
    api = HfApi(token=usable_token(destination.token), library_name=LIBRARY)
    with explained(destination.repo_id):
        Backoff(destination.retries)(api.whoami)


class Repository:
    """A repository at the commit at which it was opened.

    Args:
        destination: Where it is. It is made when missing, and so is the branch.

    Raises:
        PushError: If the Hub refuses; says what to do.
    """

    def __init__(self, destination: Destination):
        self._to = destination
        self._api = HfApi(token=usable_token(destination.token), library_name=LIBRARY)
        self._again = Backoff(destination.retries)
        with explained(destination.repo_id, destination.revision):
            self._open()

    def _open(self) -> None:
        to, api = self._to, self._api
        self.repo_id: str = self._again(self._create)
        if to.revision and not to.create_pr and not to.revision.startswith("refs/"):
            branch = to.revision
            self._again(lambda: api.create_branch(self.repo_id, branch=branch, exist_ok=True))
        info = self._again(lambda: api.model_info(self.repo_id, revision=to.revision, files_metadata=True))
        assert info.sha is not None and info.siblings is not None
        self.parent: str = info.sha
        self.files = {sibling.rfilename: sibling for sibling in info.siblings}
        if to.private and not info.private:
            raise PushError(
                f"{self.repo_id} was not pushed: it exists already and is public; make it private on its settings "
                "page, or leave out private."
            )
        if to.tag and (taken := self._tag(to.tag)) and taken.target_commit != self.parent:
            raise self._tag_is_taken()

    def _create(self) -> str:
        """Makes the repository where it is missing; its id, with the namespace where none was given."""
        try:
            return self._api.create_repo(self._to.repo_id, private=self._to.private, exist_ok=True).repo_id
        except KeyError as error:
            # The client takes every 409 for "it is there already", with an address; others have none.
            if "/" in self._to.repo_id:
                return self._to.repo_id  # what follows says whether it is there
            raise PushError(
                f"{self._to.repo_id} was not pushed: the Hub says that it conflicts with what is there (409); "
                "name the repository with its namespace (org/name).",
                409,
            ) from error

    def download(self, path: str) -> Path | None:
        """A file as it is at the commit that was opened; None if there is none of the name."""
        if path not in self.files:
            return None
        with explained(self.repo_id, self._to.revision):
            return Path(self._again(lambda: self._api.hf_hub_download(self.repo_id, path, revision=self.parent)))

    def commit(self, folder: Path, message: str, gone: Iterable[str] = ()) -> CommitInfo:
        """Puts everything in a folder into the repository in one commit, or nothing.

        An answer that got lost on the way is no failure: what stands there already is not committed again.

        Args:
            folder: Files, in the folders that they shall have there.
            message: Title of the commit, where the destination names none.
            gone: Paths to delete.

        Raises:
            PushError: If the Hub refuses, if somebody else has committed since the repository was opened, or if the
                tag has another commit.
        """
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        doomed = [path for path in gone if path in self.files]
        title = self._to.commit_message or message
        with explained(self.repo_id, self._to.revision):
            if self._to.tag and self._tag(self._to.tag) and not self._holds(self.parent, files, doomed):
                raise self._tag_is_taken()
            info = self._again(lambda: self._commit_once(files, doomed, title))
            if tag := self._to.tag:
                self._again(lambda: self._api.create_tag(self.repo_id, tag=tag, revision=info.oid, exist_ok=True))
        return info

    def _commit_once(self, files: Mapping[str, Path], gone: list[str], title: str) -> CommitInfo:
        to = self._to
        if to.create_pr and (proposed := self._proposal(files, gone, title)):
            return proposed
        # Made again for each attempt: the client writes into operations what it found on the Hub.
        operations = [
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
            *(CommitOperationDelete(path_in_repo=name) for name in self._still_there(gone)),
        ]
        return self._api.create_commit(
            self.repo_id,
            operations,
            commit_message=title,
            revision=to.revision,
            create_pr=to.create_pr,
            parent_commit=self.parent,
        )

    def _still_there(self, paths: list[str]) -> list[str]:
        """The paths among these that the branch holds now: an attempt whose answer got lost has deleted the others."""
        if not paths or self._to.create_pr:
            return paths
        return [node.path for node in self._api.get_paths_info(self.repo_id, paths, revision=self._to.revision)]

    def _holds(self, revision: str, files: Mapping[str, Path], gone: list[str]) -> bool:
        """Whether these very files stand at a revision, and no file that is to go."""
        nodes = self._api.get_paths_info(self.repo_id, [*files, *gone], revision=revision)
        found = {node.path: node for node in nodes if isinstance(node, RepoFile)}
        return found.keys() == files.keys() and all(_same(files[name], found[name]) for name in files)

    def _proposal(self, files: Mapping[str, Path], gone: list[str], title: str) -> CommitInfo | None:
        """An open pull request of these very files: the answer to an earlier attempt that got lost."""
        discussions = self._api.get_repo_discussions(
            self.repo_id, discussion_type="pull_request", discussion_status="open"
        )
        for discussion in discussions:
            if discussion.title == title and self._holds(discussion.git_reference or "", files, gone):
                head = self._api.model_info(self.repo_id, revision=discussion.git_reference).sha
                url = f"{self._api.endpoint}/{self.repo_id}"
                return CommitInfo(
                    commit_url=f"{url}/commit/{head}",
                    commit_message=title,
                    commit_description="",
                    oid=head or "",
                    pr_url=f"{url}/discussions/{discussion.num}",
                    _endpoint=self._api.endpoint,
                )
        return None

    def _tag(self, name: str) -> GitRefInfo | None:
        refs = self._again(lambda: self._api.list_repo_refs(self.repo_id))
        return next((ref for ref in refs.tags if ref.name == name), None)

    def _tag_is_taken(self) -> PushError:
        return PushError(
            f"{self.repo_id} was not pushed: the tag {self._to.tag!r} names another commit already; choose another "
            "tag, or delete that one.",
            409,
        )


def git_blob_id(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _same(path: Path, published: RepoFile) -> bool:
    if published.size != path.stat().st_size:
        return False
    if published.lfs is None:
        return published.blob_id == git_blob_id(path.read_bytes())
    with path.open("rb") as file:
        return published.lfs.sha256 == hashlib.file_digest(file, "sha256").hexdigest()
