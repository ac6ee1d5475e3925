import json
from importlib.util import find_spec

import pytest
from kept import kept
from mixed_text import books_and_library

from benchmarks import zoo_smollm2
from hfsae import SAE
from hfsae.data.stdlib_text import stdlib_documents
from hfsae.hub.card import is_dashboard_of


def test_what_is_kept_is_made_once(tmp_path):
    made = iter(range(5))
    file = tmp_path / "new" / "one.json"
    assert [kept(file, lambda: {"made": next(made)}) for _ in range(2)] == [{"made": 0}, {"made": 0}]

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "other.json", broken)
    assert not (tmp_path / "other.json").exists()


def test_the_benchmark_hides_no_library_behind_an_example_of_its_name():
    spec = find_spec("evaluate")
    assert spec is not None and spec.submodule_search_locations


def test_text_of_two_kinds_takes_turns_and_loses_nothing(tmp_path):
    paragraphs = [{"book": f"book {i // 50}", "text": f"{i} " + "word " * 40} for i in range(100)]
    books = tmp_path / "books.jsonl"
    books.write_text("\n".join(map(json.dumps, paragraphs)), encoding="utf-8")
    lines = books_and_library(tmp_path / "all.jsonl", books).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    n_books = sum(text.endswith("word \n\n") for text in texts)
    assert all(texts[2 * i].endswith("word \n\n") for i in range(n_books)) and n_books < len(texts) / 2
    assert "".join(texts[: 2 * n_books : 2]).split() == " ".join(one["text"] for one in paragraphs).split()
    library = texts[1 : 2 * n_books : 2] + texts[2 * n_books :]
    assert "".join(library) == "".join(document["text"] for document in stdlib_documents("train"))


@pytest.mark.slow
def test_the_zoo_goes_on_from_one_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo_smollm2, "ALL_LAYERS", (1, 2))
    (tmp_path / "text.jsonl").write_text(
        "\n".join(json.dumps({"text": one["text"][:2000]}) for one in list(stdlib_documents("train"))[:200]),
        encoding="utf-8",
    )
    command = ["--model", "examples/tiny_lm", "--books", str(tmp_path / "none"), "--output_dir", str(tmp_path)]
    sizes = ["--factors", "2", "--tokens", "8192", "--batch_tokens", "1024", "--k", "8", "--eval_tokens", "500"]
    zoo_smollm2.main([*command, *sizes, "--layers", "1", "--architectures", "topk"])
    first = capsys.readouterr().out
    rows = tmp_path / "activations" / "rows-00000.safetensors"
    time = rows.stat().st_mtime_ns
    cards = ["--pages", "4", "--page_tokens", "1000", "--cards", str(tmp_path / "cards")]
    zoo_smollm2.main([*command, *sizes, "--layers", "1", "2", "--architectures", "topk", *cards])
    second = capsys.readouterr().out
    assert second.startswith(first) and "resid_post.2: 8,192 tokens" in second
    assert rows.stat().st_mtime_ns == time  # one cache serves both
    assert SAE.from_pretrained(tmp_path / "zoo/resid_post.2/topk-2x-8").config.n_features == 256
    written = {path.relative_to(tmp_path / "cards").as_posix() for path in (tmp_path / "cards").rglob("README.md")}
    assert written == {"README.md", "resid_post.1/topk-2x-8/README.md", "resid_post.2/topk-2x-8/README.md"}
    assert not list((tmp_path / "cards").rglob("*.safetensors"))
    page = (tmp_path / "cards/resid_post.2/topk-2x-8/dashboard.html").read_text(encoding="utf-8")
    shown = SAE.from_pretrained(tmp_path / "zoo/resid_post.2/topk-2x-8")
    assert (
        is_dashboard_of(tmp_path / "cards/resid_post.2/topk-2x-8/dashboard.html", shown)
        and "explained variance" in page
    )
