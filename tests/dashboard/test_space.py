from huggingface_hub import SpaceCard

from hfsae.dashboard import write_space
from tests.dashboard.tiny import ATTACK, collection, tokenizer


def test_a_space_is_the_dashboard_with_a_card_that_the_hub_reads(tmp_path):
    folder = write_space(collection(), tokenizer(), tmp_path / "space", title="Tiny features", repo_id="org/tiny")
    card = SpaceCard.load(folder / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.title) == ("static", "index.html", "Tiny features")
    assert {card.data.colorFrom, card.data.colorTo} <= SPACE_COLOURS and card.data.models == ["org/tiny"]
    assert (folder / "index.html").is_file() and len(list(folder.glob("features-*.js"))) == 1
    assert ATTACK not in card.text and "The 40 features" in card.text


# https://huggingface.co/docs/hub/spaces-config-reference
SPACE_COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
