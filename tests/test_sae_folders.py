"""Where SAEs lie, by the names of files."""

import pytest

from hfsae.sae_folders import folders_among, matching, place_of, sae_folders


@pytest.mark.parametrize(
    "files, folders",
    [
        (["config.json", "README.md"], [""]),
        (["b.10/config.json", "b.9/config.json", "a/b/config.json"], ["a/b", "b.9", "b.10"]),
        (["checkpoint-5/saes/config.json", "last-checkpoint/saes/config.json", "x/my-config.json"], []),
        (["../config.json", "a/../../config.json", "/a/config.json"], []),
    ],
)
def test_folders_with_a_config_are_those_of_saes(files, folders):
    assert folders_among(files) == folders


def test_folders_of_this_machine(tmp_path):
    for name in ("b/c", "a", "a/checkpoint-3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").touch()
    assert sae_folders(tmp_path) == ["a", "b/c"]


def test_a_star_stands_for_folders_below_too():
    names = ["resid_post.1/topk-64-4", "resid_post.10/topk-64-4", "mlp_out.1/gated-64"]
    assert matching(names, "resid_post.*") == names[:2]
    assert matching(names, "*/topk-*") == names[:2]
    assert matching(names, "resid_post.1/*") == names[:1]


def test_a_place_is_a_folder_or_lies_in_a_repository(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "v@1").mkdir()
    monkeypatch.chdir(tmp_path)
    whole = {"subfolder": "", "revision": None}
    for here in (str(tmp_path), str(tmp_path / "gone" / "x"), "runs/gpt2/topk", "./runs", "~/runs/a/b", "v@1"):
        assert place_of(here) == (here, whole)
        assert place_of(here, "a", "v1") == (here, {"subfolder": "a", "revision": "v1"})
    for there in ("org/sae", "a-release"):
        assert place_of(there) == (there, whole)
        assert place_of(there, "a", "v1") == (there, {"subfolder": "a", "revision": "v1"})
    assert place_of("org/zoo/a/b@v1") == ("org/zoo", {"subfolder": "a/b", "revision": "v1"})
    assert place_of("org/zoo@v1", "a") == ("org/zoo", {"subfolder": "a", "revision": "v1"})
    for twice in (("org/zoo/a", "b"), ("org/zoo@v1", "", "v2")):
        with pytest.raises(ValueError, match="leave out subfolder and revision"):
            place_of(*twice)
