"""`hfsae dashboard` and `hfsae space`."""

import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hfsae.cli import main
from tests.dashboard.tiny import index_of, saved_sae


@pytest.fixture
def place(tmp_path):
    return saved_sae(tmp_path)


def test_a_page_and_a_space_are_written(place, capsys):
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train", "--tokens", "200"]
    assert main(["dashboard", str(place / "sae"), *text, "--text", "w1 w2", "--text", "w3 w4 w5"]) == 0
    page = place / "sae" / "dashboard.html"
    assert capsys.readouterr().out == f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)\n"
    assert len(index_of(page)["prompts"]) == 2

    assert main(["space", str(place / "sae"), "--output", str(place / "space"), "--title", "My features"]) == 0
    assert "hf upload ORG/NAME" in capsys.readouterr().out
    assert index_of(place / "space" / "index.html")["title"] == "My features"
    assert "title: My features" in (place / "space" / "README.md").read_text()


def test_a_name_that_is_taken_is_refused_before_features_are_collected(place, capsys):
    (place / "file").write_text("mine")
    (place / "page.html").mkdir()
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train", "--tokens", "200"]
    for command, output in (("space", "file"), ("dashboard", "file"), ("dashboard", "page.html")):
        assert main([command, str(place / "sae"), *text, "--output", str(place / output)]) == 1
        assert f"{output} is a " in capsys.readouterr().err
    assert (place / "file").read_text() == "mine" and not (place / "sae" / "features.safetensors").exists()


def test_a_map_by_umap_is_refused_without_its_package_before_features_are_collected(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    assert main(["dashboard", str(place / "sae"), "--map", "umap"]) == 1
    assert "a map by UMAP needs umap-learn: pip install 'hfsae[umap]'." in capsys.readouterr().err
    assert not (place / "sae" / "features.safetensors").exists()


def test_the_map_is_by_umap_where_it_is_asked_for(place):
    pytest.importorskip("umap")
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train", "--tokens", "200"]
    maps = {}
    for method, source in (("pca", text), ("umap", [])):  # the second one takes the features that were kept
        assert main(["dashboard", str(place / "sae"), *source, "--map", method]) == 0
        maps[method] = index_of(place / "sae" / "dashboard.html")["map"]
    assert maps["umap"]["explained"] is None and len(maps["pca"]["explained"]) == 2
    assert maps["umap"]["groups"] == maps["pca"]["groups"] and maps["umap"]["x"] != maps["pca"]["x"]


def test_one_of_many_is_shown_from_a_folder_and_from_a_revision_on_the_hub(hub, place, monkeypatch):
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train", "--tokens", "200", "--batch-size", "4"]
    assert main(["dashboard", str(place), "--subfolder", "sae", *text]) == 0
    here = index_of(place / "sae" / "dashboard.html")

    HfApi().create_repo("tester/many")
    HfApi().upload_folder(repo_id="tester/many", folder_path=place / "sae", path_in_repo="deep/one")
    HfApi().create_tag("tester/many", tag="v1")
    HfApi().delete_folder("deep", "tester/many")
    monkeypatch.chdir(place)
    where = ["tester/many", "--subfolder", "deep/one"]
    assert main(["dashboard", *where, "--revision", "v1", *text]) == 0
    assert index_of(place / "dashboard.html") == here
    assert main(["dashboard", *where, *text, "--output", "gone.html"]) == 1 and not Path("gone.html").exists()


@pytest.mark.slow
def test_every_transcoder_of_a_set_gets_a_page_beside_it_and_one_alone_where_it_is_named(
    trained_set, tmp_path, capsys
):
    folder = shutil.copytree(trained_set, tmp_path / "set")
    reading = ["--tokens", "500"]
    assert (
        main(["dashboard", str(folder), "--subfolder", "mlp_in.3", *reading, "--output", str(tmp_path / "p.html")])
        == 0
    )
    assert main(["dashboard", str(folder), *reading]) == 0
    pages = {name: folder / name / "dashboard.html" for name in ("mlp_in.2", "mlp_in.3")}
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] == list(map(str, pages.values()))
    shown = {name: index_of(page) for name, page in pages.items()}
    assert shown["mlp_in.3"]["features"] == index_of(tmp_path / "p.html")["features"] != shown["mlp_in.2"]["features"]
    assert main(["dashboard", str(folder), *reading, "--output", "all.html"]) == 1
    assert "each SAE gets a page beside it" in capsys.readouterr().err


def test_a_push_makes_and_takes_a_dashboard_along(hub, place, capsys):
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train", "--tokens", "200"]
    assert main(["dashboard", str(place / "sae"), *text]) == 0
    (place / "sae" / "dashboard.html").unlink()
    assert main(["push", str(place / "sae"), "tester/small", "--dashboard"]) == 0
    files = hub.repo("tester/small").files()
    assert files["dashboard.html"] == (place / "sae" / "dashboard.html").read_bytes()
    assert "](dashboard.html)" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no text was recorded"),
        (["--dataset", "{place}/text.jsonl", "--split", "train", "--text", ""], "prompt 0 is empty"),
        (["--labels", "{place}/none.json"], "none.json"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(place, capsys, options, message):
    assert main(["dashboard", str(place / "sae"), *(option.format(place=place) for option in options)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hfsae dashboard: ")]
    assert message in line and not (place / "sae" / "dashboard.html").exists()
