import re

from hfsae.dashboard import write_dashboard
from hfsae.dashboard.page_contents import unpack
from tests.dashboard.tiny import collection, index_of, tokenizer

PROMPT = {"tokens": ["w1", " w2"], "kept": [False, True], "features": [[], [3]], "activations": [[], [1.5]]}


def test_one_file_holds_everything(tmp_path):
    page = write_dashboard(
        collection(), tokenizer(), tmp_path / "sae.html", title="tiny", labels={3: "x", 4: ""}, prompts=[PROMPT]
    )
    assert list(tmp_path.iterdir()) == [page]
    index = index_of(page)
    assert (index["title"], index["labels"], index["prompts"]) == ("tiny", {"3": "x"}, [PROMPT])
    (group,) = re.findall(r'id="group-\d+">([^<]*)<', page.read_text())
    assert len(unpack(group)["features"]) == len(index["features"]["index"]) == 40


def test_a_folder_holds_the_page_and_the_pieces_that_it_names(tmp_path):
    page = write_dashboard(collection(), tokenizer(), tmp_path / "pages")
    assert page == tmp_path / "pages" / "index.html" and "group-0" not in page.read_text()
    (name,) = index_of(page)["files"]
    assert {path.name for path in page.parent.iterdir()} == {"index.html", name}
    call = re.fullmatch(r'receiveFeatures\(0, "([A-Za-z0-9+/=]+)"\);\n', (page.parent / name).read_text())
    assert call and len(unpack(call[1])["features"]) == 40


def test_pieces_of_an_earlier_page_go_and_other_files_stay(tmp_path):
    (tmp_path / "features-00007-0123456789ab.js").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    page = write_dashboard(collection(), tokenizer(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "notes.txt", *index_of(page)["files"]}


def test_the_same_collection_gives_the_same_bytes(tmp_path):
    pages = [write_dashboard(collection(), tokenizer(), tmp_path / name) for name in ("a.html", "b.html")]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_folders_of_this_machine_are_not_in_the_page(tmp_path):
    from dataclasses import replace

    from hfsae.analysis import FeatureCollection

    about = replace(collection().about, base_model="/home/somebody/models/lm", dataset="/home/somebody/text.jsonl")
    moved = FeatureCollection.from_tensors(about, collection().tensors())
    page = write_dashboard(moved, tokenizer(), tmp_path / "sae.html")
    shown = index_of(page)["about"]
    assert (shown["base_model"], shown["dataset"]) == ("lm", "text.jsonl") and "somebody" not in page.read_text()
