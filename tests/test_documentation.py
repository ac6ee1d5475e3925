"""What the README and the docs show runs as it stands."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import CONFIG_MAPPING, MODEL_MAPPING

from hfsae import SAE, TopKSAEConfig
from hfsae.autoencoder import registry
from hfsae.cli import COMMANDS
from hfsae.command_line import OLD_NAMES

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
PAGES += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]


def snippets(path: str, containing: str) -> str:
    """The one Python block of a document that contains a text."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.S)
    (found,) = [block for block in blocks if containing in block]
    return found


FIRST_SNIPPET = "sae.attach(model) as run"


def an_sae_of(base_model: str, revision: str | None) -> SAE:
    hook_point = "transformer.h.1.output"
    base = {"base_model": base_model, "base_model_revision": revision, "hook_point": hook_point}
    return SAE.from_config(TopKSAEConfig(d_in=128, expansion_factor=4, k=8, **base))


def hold_the_first_snippet_against(sae: SAE, names: dict, printed: str) -> None:
    """Every token was printed with its five strongest features, found here without attaching anything."""
    tokenizer, model = names["tokenizer"], names["model"]
    inputs = tokenizer("def main(self):", return_tensors="pt")
    with torch.no_grad():
        dense = sae.encode(model(**inputs, output_hidden_states=True).hidden_states[2])
    torch.testing.assert_close(names["run"].features.to_dense(), dense)
    lines = [line.rsplit(" [", 1) for line in printed.splitlines()]
    assert [token for token, _ in lines] == tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert [json.loads(f"[{features}") for _, features in lines] == dense[0].topk(5).indices.tolist()


def test_the_first_snippet_of_the_readme_prints_tokens_with_features_of_a_saved_sae(tmp_path, monkeypatch, capsys):
    sae = an_sae_of(str(ROOT / "examples" / "tiny_lm"), None)
    sae.save_pretrained(tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippets("README.md", FIRST_SNIPPET), names)
    hold_the_first_snippet_against(sae, names, capsys.readouterr().out)


def test_the_first_snippet_of_the_readme_reads_a_published_sae_too(hub, tmp_path, capsys):
    owner = HfApi(token=hub.add_user("owner", "org").write_token)
    owner.create_repo("org/tiny-lm")
    owner.upload_folder(repo_id="org/tiny-lm", folder_path=ROOT / "examples" / "tiny_lm")
    sae = an_sae_of("org/tiny-lm", owner.model_info("org/tiny-lm").sha)
    sae.save_pretrained(tmp_path)
    owner.create_repo("org/gpt2-l8-16x")
    owner.upload_folder(repo_id="org/gpt2-l8-16x", folder_path=tmp_path)
    snippet = snippets("README.md", FIRST_SNIPPET)
    assert "org/gpt2-l8-16x" in snippet
    names: dict = {}
    exec(snippet.replace("runs/tiny", "org/gpt2-l8-16x"), names)
    hold_the_first_snippet_against(sae, names, capsys.readouterr().out)


def test_the_first_snippet_of_the_readme_is_that_of_a_card():
    def without_names(block: str) -> list[str]:
        lines = [line.partition("  #")[0] for line in block.splitlines() if line]
        return [re.sub(r'"[^"]*"(, subfolder="[^"]*")?', '"..."', line) for line in lines]

    card = "model_cards/smollm2/resid_post.9/batch_topk-8x-32/README.md"
    *lines, _ = without_names(snippets(card, FIRST_SNIPPET))
    assert without_names(snippets("README.md", FIRST_SNIPPET))[: len(lines)] == lines and len(lines) > 6


def test_the_readme_names_arguments_and_configs_that_exist(tmp_path, monkeypatch):
    setup, _, training = snippets("README.md", "JumpReLUSAEConfig").partition("output = ")
    assert training.startswith("SAETrainer(args=args, saes=saes).train()")
    names: dict = {}
    exec(setup, names)
    assert {name: config.n_features for name, config in names["saes"].items()} == {"topk": 12288, "jumprelu": 12288}


def test_the_architecture_of_the_docs_trains_a_step():
    from hfsae.autoencoder.outputs import StepState

    names: dict = {}
    try:
        exec(snippets("docs/new_architecture.md", "hfsae_my_topk"), names)
        sae = SAE.from_config(names["MyTopKSAEConfig"](d_in=8, n_features=32, k=4))
        loss = sae(torch.randn(16, 8), state=StepState()).loss
        loss.backward()
        assert loss > 0 and sae.encoder.weight.grad is not None
    finally:
        registry._REGISTERED.pop("my_topk", None)
        CONFIG_MAPPING._extra_content.pop("hfsae_my_topk", None)
        if "MyTopKSAEConfig" in names:
            MODEL_MAPPING._extra_content.pop(names["MyTopKSAEConfig"], None)


@pytest.mark.parametrize("path", PAGES)
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / path).read_text()):
        if not target.startswith("http"):
            assert (ROOT / path).parent.joinpath(target).exists(), f"{path} links to {target}"


def test_configs_of_the_examples_hold_known_arguments_of_the_right_type():
    from hfsae.sweeps.sweep import Sweep

    counts = {}
    for config in sorted((ROOT / "examples" / "configs").glob("*.yaml")):
        sweep = Sweep.read(config)
        assert sweep.args.output_dir
        counts[config.stem] = len(sweep.saes)
    assert counts["tiny"] == 1 and counts["sweep"] == 12


def test_the_page_on_the_command_line_names_every_command_and_config_that_comes_along():
    page = (ROOT / "docs" / "command_line.md").read_text()
    first_cells = set(re.findall(r"`([a-z0-9_-]+)`", " ".join(re.findall(r"^\| (`.*?) \|", page, re.M))))
    commands = {name for commands in COMMANDS.values() for name in commands}
    assert first_cells == commands | {path.stem for path in (ROOT / "hfsae" / "configs").glob("*.yaml")}


def test_the_page_on_training_names_every_config_that_comes_along():
    (named,) = re.findall(r"the name of one that comes along:([^(]+)", (ROOT / "docs" / "training.md").read_text())
    configs = {path.stem for path in (ROOT / "hfsae" / "configs").glob("*.yaml")}
    assert set(re.findall(r"`(\w+)`", named)) == configs


def test_the_script_of_the_page_on_the_command_line_takes_its_own_options_and_those_of_training(capsys):
    names: dict = {}
    exec(snippets("docs/command_line.md", "run_script(main)"), names)
    names["run_script"](names["main"], ["--repeats", "2", "--k", "7"])
    assert capsys.readouterr().out == "2 7\n"


def test_the_changes_name_old_options_that_are_still_taken():
    table = re.findall(r"^\| `--(\w+)` \| `--(\w+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert {name: old for name, old in table} == {name: old for name, (old, *_) in OLD_NAMES.items()}


def test_the_readme_and_the_site_lead_to_every_page():
    readme, site = (ROOT / "README.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    assert not [page for page in pages if page not in site]
    written = [page for page in pages if page != "index.md" and not page.startswith("reference/")]  # the site's own
    assert not [page for page in written if f"docs/{page}" not in readme]
