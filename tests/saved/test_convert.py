"""One SAE or a whole repository, from any format into three."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE
from hfsae.cli import main
from hfsae.hub import list_saes
from hfsae.saved.convert import convert, sae_subfolders
from tests.hub_server import HubServer
from tests.interop.foreign import FOREIGN, D, Foreign
from tests.interop.test_writers import make

X = torch.randn(5, D)


@pytest.fixture
def zoo(tmp_path: Path) -> dict[str, Foreign]:
    """A repository with SAEs of many formats, one SAE of our own, and what is none; where each lies in it."""
    root = tmp_path / "zoo"
    made = {
        "gpt2/layers.2": FOREIGN["sparsify_topk"](root / "gpt2"),
        "lens/blocks.2.hook_resid_pre": FOREIGN["saelens_jumprelu"](root / "lens" / "blocks.2.hook_resid_pre"),
        "dl/trainer_0": FOREIGN["batch_topk"](root / "dl" / "trainer_0"),
        "bare/SAE-l19": FOREIGN["goodfire"](root / "bare"),
    }
    ours = make("standard")
    ours.save_pretrained(root / "ours")
    ours.save_pretrained(root / "checkpoint-30")
    made["ours"] = Foreign(root / "ours", ours.encode, ours.decode, {}, "standard")
    (root / "README.md").write_text("# a zoo")
    (root / ".cache").mkdir()
    shutil.copy(root / "bare" / "SAE-l19.pth", root / ".cache" / "hidden.pth")
    return made


def assert_converted(folder: Path, zoo: dict[str, Foreign]) -> None:
    for name, foreign in zoo.items():
        sae = SAE.from_pretrained(folder / name)
        torch.testing.assert_close(sae.encode(X), foreign.features(X), rtol=0, atol=1e-5)


def test_every_sae_of_a_folder_is_found_and_nothing_else(zoo: dict[str, Foreign], tmp_path: Path):
    found = list(sae_subfolders(tmp_path / "zoo"))
    assert found == ["bare/SAE-l19.pth", "dl/trainer_0", "gpt2/layers.2", "lens/blocks.2.hook_resid_pre", "ours"]
    assert list(sae_subfolders(tmp_path / "zoo", "dl")) == ["dl/trainer_0"]
    assert list(sae_subfolders(tmp_path / "zoo", "bare/SAE-l19.pth")) == ["bare/SAE-l19.pth"]


def test_a_whole_folder_keeps_its_layout(zoo: dict[str, Foreign], tmp_path: Path):
    written = convert(tmp_path / "zoo", tmp_path / "out", allow_pickle=True)
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == set(zoo)
    assert_converted(tmp_path / "out", zoo)


def test_a_hub_repository_is_converted_likewise(hub: HubServer, zoo: dict[str, Foreign], tmp_path: Path):
    HfApi().create_repo("tester/zoo")
    HfApi().upload_folder(repo_id="tester/zoo", folder_path=tmp_path / "zoo", ignore_patterns=[".cache/*"])
    convert("tester/zoo", tmp_path / "out", allow_pickle=True)
    assert_converted(tmp_path / "out", zoo)


def test_a_single_sae_is_written_right_there(tmp_path: Path):
    foreign = FOREIGN["gemma_scope"](tmp_path / "theirs")
    (folder,) = convert(foreign.path, tmp_path / "out")
    assert folder == tmp_path / "out" and (folder / "config.json").is_file()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_transcoders_that_share_a_folder_get_one_each(tmp_path: Path):
    path = FOREIGN["qwen3_transcoder"](tmp_path / "theirs").path
    written = convert(path.parent, tmp_path / "out")
    assert [folder.name for folder in written] == ["layer_2", "layer_3"]
    assert SAE.from_pretrained(written[1]).config.target_hook_point == "model.layers.3.mlp.output"


@pytest.mark.parametrize("to, place", [("saelens", "."), ("sparsify", "layers.2")])
def test_into_the_formats_of_others(to, place: str, tmp_path: Path):
    sae = make("topk")
    sae.save_pretrained(tmp_path / "ours")
    (folder,) = convert(tmp_path / "ours", tmp_path / "theirs", to)
    assert folder == tmp_path / "theirs" / place
    torch.testing.assert_close(SAE.from_pretrained(folder).state_dict(), sae.state_dict(), rtol=0, atol=0)


def test_from_sparsify_to_sparsify_does_not_nest(tmp_path: Path):
    for name in ("sparsify_topk", "sparsify_groupmax"):
        FOREIGN[name](tmp_path / "theirs")
    written = convert(tmp_path / "theirs", tmp_path / "out", "sparsify")
    assert [folder.relative_to(tmp_path / "out").as_posix() for folder in written] == ["layers.2", "layers.2.mlp"]


def test_a_place_without_saes_and_an_unknown_format_are_errors(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no SAE of a known format lies in .*empty"):
        convert(tmp_path / "empty", tmp_path / "out")
    known = "hfsae, circuit-tracer, clt-training, gemma-scope-2, llamascopium, saelens, sparsify"
    with pytest.raises(ValueError, match=f"to must be one of {known}, got 'onnx'"):
        convert(tmp_path / "empty", tmp_path / "out", "onnx")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# -- the command ------------------------------------------------------------------------------------------------------
def test_the_command_writes_cards_and_the_table_of_them_all(
    zoo: dict[str, Foreign], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, out = str(tmp_path / "zoo"), tmp_path / "out"
    assert main(["convert", source, str(out), "--allow-pickle", "--set", "context_length=99"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in sorted(zoo)]
    assert [entry.name for entry in list_saes(out)] == sorted(zoo)
    table = (out / "README.md").read_text()
    for name in zoo:
        assert f"({name}/README.md)" in table and (out / name / "README.md").is_file()
        assert SAE.from_pretrained(out / name).config.context_length == 99


def test_what_was_converted_is_listed_on_the_hub_without_reading_each_config(
    hub: HubServer, zoo: dict[str, Foreign], tmp_path: Path
):
    assert main(["convert", str(tmp_path / "zoo"), str(tmp_path / "out"), "--allow-pickle"]) == 0
    HfApi().create_repo("tester/converted")
    HfApi().upload_folder(repo_id="tester/converted", folder_path=tmp_path / "out")
    hub.requests.clear()
    listed, here = list_saes("tester/converted"), list_saes(tmp_path / "out")
    assert [replace(entry, repo_id=str(tmp_path / "out")) for entry in listed] == here and len(here) == len(zoo)
    assert not hub.requests.matching(path="config.json")


def test_the_command_says_in_one_line_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = FOREIGN["goodfire"](tmp_path).path
    assert main(["convert", str(path), str(tmp_path / "out")]) == 1
    assert "is a pickle" in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "out"), "--allow-pickle", "--set", "hook_point"]) == 1
    assert "--set takes FIELD=VALUE, got 'hook_point'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_describes_what_others_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = FOREIGN["batch_topk"](tmp_path).path
    assert main(["info", str(path), "--allow-pickle"]) == 0
    said = capsys.readouterr().out
    assert "batch_topk" in said and "gpt_neox.layers.2.output" in said and "EleutherAI/pythia-70m-deduped" in said
