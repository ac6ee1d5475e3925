"""`hfsae trace`: from saved transcoders to a page, JSON and a graph, with what lies beside the weights."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hfsae import SAE, Graph, TopKCrossLayerTranscoderSAEConfig, TopKSAEConfig, collect_features
from hfsae.circuits.trace_saved import beside
from hfsae.cli import main
from hfsae.dashboard import write_labels
from hfsae.identity import Identity
from tests.analysis.tiny import setting, texts
from tests.circuits.test_graph_page import content_of
from tests.hub.samples import dashboard_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transcoder for every MLP of a small GPT-2, features of the first, and labels."""
    place = tmp_path_factory.mktemp("run")
    _, model, tokenizer = setting()
    model.save_pretrained(place / "lm")
    tokenizer.save_pretrained(place / "lm")
    width, layers = model.config.n_embd, model.config.n_layer
    for layer in range(layers):
        places = {"hook_point": f"mlp_in.{layer}", "target_hook_point": f"mlp_out.{layer}", "subtract_b_dec": False}
        config = TopKSAEConfig(d_in=width, n_features=40, k=4, base_model=str(place / "lm"), **places)
        sae = SAE.from_config(config)
        sae.save_pretrained(place / "set" / f"mlp_in.{layer}")
        if layer == 0:
            collected = collect_features(sae, model, tokenizer, texts(), disable_tqdm=True)
            collected.save(place / "set" / "mlp_in.0")
            names = {feature: f"name of {feature}" for feature in range(40)}
            write_labels(place / "set" / "mlp_in.0" / "labels.json", names, *Identity.of(sae))
            (place / "set" / "mlp_in.0" / "dashboard.html").write_text(dashboard_of(sae))
    return place


def test_a_prompt_becomes_a_page_json_and_a_graph(run: Path, tmp_path: Path, capsys):
    files = [
        "--output",
        tmp_path / "out" / "graph.html",
        "--json",
        tmp_path / "graph.json",
        "--graph",
        tmp_path / "g.st",
    ]
    options = ["--prompt", "w1 w2 w3 w4", "--max_features", "20", "--validate", "3", *map(str, files)]
    assert main(["trace", str(run / "set"), *options]) == 0
    said = capsys.readouterr().out
    assert (
        "20 of" in said
        and "replacement score" in said
        and "others of like activation taken away: predicted and" in said
        and "probability" in said
    )
    content = content_of(tmp_path / "out" / "graph.html")
    first = next(node for node in content["nodes"] if node["source"] == "mlp_in.0" and node["kind"] == "feature")
    assert first["label"] == f"name of {first['feature']}"
    assert f"mlp_in.0/{first['feature']}" in content["features"]
    assert (tmp_path / "out" / content["dashboards"]["mlp_in.0"]).resolve() == run / "set/mlp_in.0/dashboard.html"
    graph = Graph.load(tmp_path / "g.st")
    assert graph.prompt == "w1 w2 w3 w4" and int(graph.is_kind("feature").sum()) == 20
    written = json.loads((tmp_path / "graph.json").read_text())
    assert written["metadata"]["slug"] == "graph" and len(written["links"]) > 0


def test_what_lies_beside_with_another_k_is_left_out(run: Path, caplog: pytest.LogCaptureFixture):
    sae = SAE.from_pretrained(run / "set" / "mlp_in.0")
    found = beside(run / "set", {"mlp_in.0": sae})
    assert all("mlp_in.0" in kind for kind in found)
    with pytest.raises(ValueError, match="labels of other settings"):
        beside(run / "set", {"mlp_in.0": sae.with_k(2)})
    labels = run / "set" / "mlp_in.0" / "labels.json"
    labels.rename(labels.with_name("away"))
    with caplog.at_level("INFO", "hfsae"):
        assert not any(beside(run / "set", {"mlp_in.0": sae.with_k(2)}))
    labels.with_name("away").rename(labels)
    assert "of other settings than these (k was 4 and is 2): the page shows no examples" in caplog.text


def test_a_cross_layer_transcoder_brings_labels_and_examples_of_all_its_layers(run: Path, tmp_path: Path):
    _, model, tokenizer = setting()
    width, layers = model.config.n_embd, range(model.config.n_layer)
    names = [f"mlp_in.{layer}" for layer in layers]
    config = TopKCrossLayerTranscoderSAEConfig(
        source_names=names,
        source_widths=[width for _ in layers],
        n_features=40 * len(names),
        k=4,
        hook_point="+".join(names),
        target_hook_point="+".join(f"mlp_out.{layer}" for layer in layers),
        base_model=str(run / "lm"),
    )
    sae = SAE.from_config(config)
    sae.save_pretrained(tmp_path / "clt")
    collected = collect_features(sae, model, tokenizer, texts(), disable_tqdm=True)
    collected.save(tmp_path / "clt")
    labels = {feature: f"name of {feature}" for feature in range(config.n_features)}
    write_labels(tmp_path / "clt" / "labels.json", labels, collected.about.weights_sha256)
    page = tmp_path / "graph.html"
    assert main(["trace", str(tmp_path / "clt"), "--prompt", "w1 w2 w3 w4", "--output", str(page)]) == 0
    content = content_of(page)
    features = [node for node in content["nodes"] if node["kind"] == "feature"]
    assert {node["layer"] for node in features} == set(layers)
    for node in features:
        assert node["feature"] // 40 == node["layer"] and node["label"] == f"name of {node['feature']}"
    assert any(f"sae/{node['feature']}" in content["features"] for node in features if node["layer"])


def test_tokens_are_chosen_and_compared(run: Path, tmp_path: Path, capsys):
    options = ["trace", str(run / "set"), "--prompt", "w1 w2 w3", "--output", str(tmp_path / "graph.html")]
    assert main([*options, "--target", "w5", "--against", "w6"]) == 0
    printed = capsys.readouterr().out
    assert "a difference of two logits" in printed and "probability" not in printed
    (difference,) = (node for node in content_of(tmp_path / "graph.html")["nodes"] if node["kind"] == "logit")
    assert difference["against"] is not None
    assert main([*options, "--target", "w5", "--target", "w7", "--validate", "0"]) == 0
    labels = [node["label"] for node in content_of(tmp_path / "graph.html")["nodes"] if node["kind"] == "logit"]
    assert [label.strip() for label in labels] == ["w5", "w7"]
    assert "probability" in capsys.readouterr().out


def test_what_a_reader_has_to_know_is_said_once(run: Path, tmp_path: Path, capsys, caplog: pytest.LogCaptureFixture):
    options = ["--prompt", "w1 w2 w3", "--output", str(tmp_path / "graph.html"), "--validate", "0"]
    assert main(["trace", str(run / "set" / "mlp_in.0"), *options]) == 0
    (note,) = content_of(tmp_path / "graph.html")["notes"]
    assert note.startswith("No SAE writes") and (caplog.text + capsys.readouterr().out).count(note) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--against", "w6"], "one --target"),
        (["--output", "graph.pdf"], "ends in .html"),
        (["--target", "w1 w2"], "is 2 tokens"),
        (["--prompt", ""], "has no token"),
        (["--json", "."], ". is a folder, where a file is to be written"),
        (["--graph", "."], ". is a folder, where a file is to be written"),
    ],
)
def test_what_cannot_be_traced_is_said_in_one_line(run: Path, tmp_path: Path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["trace", str(run / "set"), "--prompt", "w1 w2 w3", *options]) == 1
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1] and not list(tmp_path.glob("graph.*"))


def test_attention_of_heads_is_explained(run: Path, tmp_path: Path, capsys):
    options = ["trace", str(run / "set"), "--prompt", "w1 w2 w3 w4", "--output", str(tmp_path / "graph.html")]
    assert main([*options, "--attention", "1.0", "--attention", "0.1", "--validate", "0"]) == 0
    said = capsys.readouterr().out
    assert "layer 1, head 0: 3 looks at" in said and "layer 0, head 1: 3 looks at" in said
    assert "@3 is 'w4', @" in said.replace(" w4'", "w4'")
    shown = content_of(tmp_path / "graph.html")["attention"]
    assert [(found["layer"], found["head"]) for found in shown] == [(1, 0), (0, 1)]
    assert main([*options, "--attention", "three"]) == 1
    assert "such as 3.1" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("head", ["0.99", "99.0"])
def test_a_head_that_is_not_there_is_refused_before_anything_is_traced(run: Path, tmp_path: Path, monkeypatch, head):
    from hfsae.circuits import trace_saved

    def reached(*_: object, **__: object) -> None:
        raise AssertionError("it was traced")

    monkeypatch.setattr(trace_saved, "trace", reached)
    with pytest.raises(ValueError, match="there is no head .* layers go from 0 to"):
        layer, _, number = head.partition(".")
        trace_saved.trace_saved(run / "set", "w1 w2", tmp_path / "a.html", attention=[(int(layer), int(number))])


def test_pins_and_groups_of_a_page_are_put_back(run: Path, tmp_path: Path, capsys):
    page, kept = tmp_path / "graph.html", tmp_path / "kept.json"
    options = ["trace", str(run / "set"), "--prompt", "w1 w2 w3 w4", "--output", str(page), "--validate", "0"]
    assert main(options) == 0
    names = [node["name"] for node in content_of(page)["nodes"] if node["kind"] == "feature"][:3]
    kept.write_text(json.dumps({"pinned": names[:1], "supernodes": {"pair": names[1:]}}))
    assert main([*options, "--supernodes", str(kept)]) == 0
    content = content_of(page)
    assert content["pinned"] == names[:1] and content["supernodes"] == {"pair": names[1:]}
    for wrong, message in (("[]", "must hold"), ('{"pinned": [1], "supernodes": {}}', "must hold"), ("{", "no JSON")):
        kept.write_text(wrong)
        assert main([*options, "--supernodes", str(kept)]) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("second", ["--json", "--graph"])
def test_two_results_do_not_go_into_one_file(run: Path, tmp_path: Path, capsys, second: str):
    page = tmp_path / "graph.html"
    command = ["trace", str(run / "set"), "--prompt", "w1 w2 w3", "--output", str(page)]
    assert main([*command, second, str(tmp_path / "." / "graph.html")]) == 1
    assert "give each its own name" in capsys.readouterr().err and not page.exists()


@pytest.mark.parametrize("number", ["-1", "2"])
def test_too_few_features_to_hold_a_graph_against_the_model_are_refused_at_once(run: Path, capsys, number: str):
    assert main(["trace", str(run / "set"), "--prompt", "w1 w2 w3", "--validate", number]) == 1
    assert "or 3 features or more to take away" in capsys.readouterr().err


def test_a_subfolder_is_a_set_or_one_of_its_saes_here_and_on_the_hub(hub, run: Path, tmp_path: Path):
    HfApi().create_repo("tester/transcoders")
    HfApi().upload_folder(repo_id="tester/transcoders", folder_path=run / "set", path_in_repo="small")

    def sources(source: str, subfolder: str) -> list[str]:
        page = tmp_path / "graph.html"
        options = ["--subfolder", subfolder, "--prompt", "w1 w2 w3 w4", "--output", str(page), "--validate", "0"]
        assert main(["trace", source, *options]) == 0
        return sorted({node["source"] for node in content_of(page)["nodes"] if node["kind"] == "feature"})

    layers = sorted(path.name for path in (run / "set").iterdir())
    assert len(layers) > 1
    assert sources("tester/transcoders", "small") == sources(str(run), "set") == layers
    assert sources("tester/transcoders", "small/mlp_in.1") == sources(str(run), "set/mlp_in.1") == ["sae"]
