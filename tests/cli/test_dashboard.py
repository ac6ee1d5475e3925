"""`hfsae dashboard` and `hfsae space`."""

import pytest

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
