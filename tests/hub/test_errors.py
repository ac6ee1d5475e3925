"""Every refusal of the Hub says in one sentence what to do."""

import pytest
from huggingface_hub import HfApi

from hfsae.hub import PushError
from hfsae.hub.errors import usable_token

REPO = "tester/small"
STORAGE = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit"


@pytest.mark.parametrize(
    "status, message, remedy",
    [
        (400, "Odd.", r"the Hub refuses it \(HTTP 400: Odd.*\); mend what it names"),
        (401, "", "does not know the token; log in with `hf auth login`"),
        (403, "", "may not write to tester; use a write token"),
        (403, STORAGE, "the storage of tester is full; free some"),
        (402, STORAGE, "the storage of tester is full; free some"),
        (404, "", "no repository tester/small can be seen with this token; check the name"),
        (409, "Busy.", r"conflicts with what is there \(Busy.*\); look at the repository"),
        (412, "", "somebody else pushed to main in the meantime; look at their commit"),
        (413, "", "larger than the Hub takes; push weights of a smaller dtype"),
        (429, "", "limits how many requests an account makes; wait some minutes"),
        (500, "", r"out of order \(HTTP 500\); push again later, which sends nothing twice"),
    ],
)
def test_a_refused_commit_says_what_to_do(hub, sae, status, message, remedy):
    hub.fail(("POST", "/commit/"), status=status, message=message, times=None)
    with pytest.raises(PushError, match=f"^tester/small was not pushed: .*{remedy}") as refused:
        sae.push_to_hub(REPO, retries=0)
    assert refused.value.status == status and "\n" not in str(refused.value)
    assert hub.repo(REPO).files() == {}


def test_a_full_storage_is_told_from_a_token_that_may_not_write_while_weights_are_announced_too(hub, sae):
    hub.fail(("POST", "/lfs/objects/batch"), status=403, message=STORAGE)
    with pytest.raises(PushError, match="storage of tester is full"):
        sae.push_to_hub(REPO, retries=0)


def test_real_refusals(hub, sae):
    with pytest.raises(PushError, match="does not know the token"):
        sae.push_to_hub(REPO, token="hf_nobody")
    with pytest.raises(PushError, match="may not write to tester"):
        sae.push_to_hub(REPO, token=hub.user.read_token)
    with pytest.raises(PushError, match="may not write to lab2"):
        sae.push_to_hub("lab2/small")
    sae.push_to_hub(REPO)
    HfApi().create_tag(REPO, tag="v1")
    with pytest.raises(PushError, match="a tag or a commit cannot be pushed to"):
        sae.push_to_hub(REPO, revision="refs/tags/v1")
    hub.repo(REPO).private = True
    with pytest.raises(PushError, match="may not write to tester"):
        sae.push_to_hub(REPO, token=hub.add_user("stranger").write_token)


def test_a_conflict_while_the_repository_is_made_says_what_to_do(hub, sae):
    """The client takes every 409 for a repository that is there, with an address: this one has none."""
    hub.fail(("POST", "/api/repos/create"), status=409, message="Busy.")
    with pytest.raises(PushError, match="no repository tester/small can be seen with this token"):
        sae.push_to_hub(REPO, retries=0)
    hub.fail(("POST", "/api/repos/create"), status=409, message="Busy.")
    with pytest.raises(PushError, match=r"conflicts with what is there.*name the repository with its namespace"):
        sae.push_to_hub("small", retries=0)
    sae.push_to_hub(REPO)
    sae.b_dec.data += 1
    hub.fail(("POST", "/api/repos/create"), status=409, message="Busy.")
    sae.push_to_hub(REPO)
    assert len(hub.repo(REPO).commits) == 3


def test_a_name_that_the_hub_refuses_says_so(hub, sae):
    hub.fail(("POST", "/api/repos/create"), status=400, message="Name taken.")
    with pytest.raises(PushError, match=r"refuses it \(HTTP 400: Name taken.*\); mend what it names") as refused:
        sae.push_to_hub(REPO)
    assert refused.value.status == 400


def test_metadata_that_the_hub_refuses_are_called_so(hub, sae):
    with pytest.raises(
        PushError, match=r"tester/small was not pushed: the Hub refuses the metadata of a card .*licen"
    ) as r:
        sae.push_to_hub(REPO, license="no-such-licence")
    assert r.value.status == 400 and hub.repo(REPO).files() == {}


def test_without_a_hub_it_says_so_and_the_next_push_heals_it(hub, sae):
    with hub.down(), pytest.raises(PushError, match="the Hub cannot be reached; check the network") as refused:
        sae.push_to_hub(REPO, retries=0)
    assert refused.value.status is None
    sae.push_to_hub(REPO)
    assert "model.safetensors" in hub.repo(REPO).files()


@pytest.mark.parametrize("bad", ["", "  ", "hf_a b", "hf_a\nb", "hf_ä", "hf_a\x00b"])
def test_a_token_that_cannot_be_one_is_refused_without_being_repeated(bad):
    with pytest.raises(ValueError, match="copy it again") as refused:
        usable_token(bad)
    assert "hf_a" not in str(refused.value)


def test_a_copied_token_may_have_white_space_around_it():
    assert usable_token(" hf_abc\n") == "hf_abc" and usable_token(None) is None


def test_a_token_may_be_a_switch_as_everywhere_else():
    assert usable_token(True) is True and usable_token(False) is False
