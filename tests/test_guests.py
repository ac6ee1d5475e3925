"""Architectures and formats of other installed packages: real distributions on the path of a new process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # each starts processes that import torch
GUESTS = {
    "annealed_topk": "tests.guest.annealed_topk:AnnealedTopKSAE",
    "tied_topk": "tests.guest.tied_topk:TiedTopKSAE",
}


def install(folder: Path, package: str, group: str, points: dict[str, str]) -> None:
    """What pip notes of a package, as `importlib.metadata` reads it."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def python(*command: str, path: list[Path] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """A new Python process that finds packages in these folders."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *(path or [])])), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=cwd, timeout=300
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Where a package with two architectures is installed."""
    install(tmp_path / "site", "topks", "hfsae.architectures", GUESTS)
    return tmp_path / "site"


def describe(folder: Path, *path: Path) -> subprocess.CompletedProcess:
    script = "import sys; from hfsae import SAE; sae = SAE.from_pretrained(sys.argv[1]); print(type(sae).__name__)"
    return python("-c", script, str(folder), path=list(path))


@pytest.mark.parametrize(("name", "class_name"), [("annealed_topk", "AnnealedTopKSAE"), ("tied_topk", "TiedTopKSAE")])
def test_a_guest_is_trained_by_the_command_line_and_loaded_in_a_new_process(
    site: Path, tmp_path: Path, name: str, class_name: str
):
    folder = tmp_path / "run"
    options = {
        "model_name_or_path": ROOT / "examples/tiny_lm",
        "hook_point": "resid_post.1",
        "dataset_name": "python-stdlib",
        "context_length": 64,
        "architecture": name,
        "k": 4,
        "expansion_factor": 2,
        "training_tokens": 8000,
        "train_batch_tokens": 400,
        "init_tokens": 800,
        "eval_tokens": 800,
        "output_dir": folder,
    }
    command = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    trained = python("-m", "hfsae.cli", "train", *command, path=[site])
    assert trained.returncode == 0, trained.stderr
    assert "explained variance" in trained.stdout

    with_package = describe(folder, site)
    assert with_package.stdout.strip() == class_name, with_package.stderr
    without = describe(folder)
    assert without.returncode == 1
    said = without.stderr.strip().splitlines()[-1]
    assert f"the architecture {name!r}, which is no part of hfsae: the Python module" in said
    assert f"tests.guest.{name}" in said and "Upgrade" not in said


def test_a_guest_that_cannot_be_imported_is_named_and_stands_in_nobodys_way(tmp_path: Path):
    (tmp_path / "broken_sae.py").write_text("import a_module_that_is_not_there\n")
    install(tmp_path, "broken", "hfsae.architectures", {"broken": "broken_sae:SAE", **GUESTS})
    script = """
        from hfsae.architectures import architecture_names, architectures, class_of
        print(class_of("tied_topk").__name__, "broken" in architecture_names(), "broken" in architectures())
        class_of("broken")
    """
    done = python("-c", textwrap.dedent(script), path=[tmp_path])
    assert done.stdout.split() == ["TiedTopKSAE", "True", "False"]
    assert (
        "broken 1.0 offers 'broken' as one of hfsae.architectures, but broken_sae:SAE cannot be imported"
        in (done.stderr.strip().splitlines()[-1])
    )


def test_two_packages_that_offer_one_name_are_an_error(tmp_path: Path):
    install(tmp_path, "one", "hfsae.architectures", {"twice": "tests.guest.tied_topk:TiedTopKSAE"})
    install(tmp_path, "two", "hfsae.architectures", {"twice": "tests.guest.annealed_topk:AnnealedTopKSAE"})
    done = python("-c", "from hfsae.architectures import class_of; class_of('twice')", path=[tmp_path])
    assert "one 1.0 and two 1.0 both offer 'twice'" in done.stderr


def test_a_format_of_another_package_is_read_written_and_converted(tmp_path: Path):
    install(tmp_path / "site", "matrices", "hfsae.formats", {"two-matrices": "tests.guest.two_matrices"})
    script = """
        import sys, torch
        from hfsae import SAE, TopKSAEConfig, export_sae
        from hfsae.saved.convert import convert
        torch.manual_seed(0)
        sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4))
        sae.input_scale.fill_(1.7)
        x = torch.randn(50, 8)
        theirs = SAE.from_pretrained(export_sae(sae, "theirs", "two-matrices", note="a"))
        torch.testing.assert_close(theirs.encode(x), sae.encode(x))
        convert("theirs", "ours")
        convert("ours", "theirs_again", "two-matrices")
        torch.testing.assert_close(SAE.from_pretrained("theirs_again")(x).reconstruction, sae(x).reconstruction)
        export_sae(sae, "wrong", "two-matrics")
    """
    done = python("-c", textwrap.dedent(script), path=[tmp_path / "site"], cwd=tmp_path)
    assert (
        "there is no format 'two-matrics' to write: clt-training, gemma-scope-2, llamascopium, saelens, sparsify, "
        "two-matrices. Did you mean 'two-matrices'?" in (done.stderr.strip().splitlines()[-1])
    )
    assert (tmp_path / "theirs/two_matrices.json").read_text() == '{"k": 4, "note": "a"}'
    without = describe(tmp_path / "theirs")
    assert "holds no sparse autoencoder of a known format" in without.stderr


def test_a_module_that_no_package_holds_is_imported_by_the_command_line(tmp_path: Path):
    source = (ROOT / "tests/guest/tied_topk.py").read_text().replace("hfsae_tied_topk", "hfsae_mine")
    (tmp_path / "my_topk.py").write_text(source)
    script = """
        import torch, my_topk
        torch.manual_seed(0)
        my_topk.TiedTopKSAE(my_topk.TiedTopKSAEConfig(d_in=4, n_features=8, k=2)).save_pretrained("sae")
    """
    assert python("-c", textwrap.dedent(script), path=[tmp_path], cwd=tmp_path).returncode == 0
    without = python("-m", "hfsae.cli", "info", "sae", cwd=tmp_path)
    assert without.returncode == 1 and "import the module first (--import on the command line)" in without.stderr
    shown = python("-m", "hfsae.cli", "info", "sae", "--import", "my_topk", cwd=tmp_path)
    assert shown.returncode == 0 and "mine, defined in my_topk" in shown.stdout, shown.stderr
    misspelled = python("-m", "hfsae.cli", "info", "sae", "--import", "my_topkk", cwd=tmp_path)
    assert misspelled.returncode == 1 and "No module named 'my_topkk'" in misspelled.stderr


def test_nothing_of_a_guest_is_imported_with_hfsae(site: Path):
    script = "import sys, hfsae; hfsae.SAE.from_config(hfsae.TopKSAEConfig(d_in=4, n_features=8, k=2))"
    script += "; print(len([name for name in sys.modules if name.startswith('tests')]))"
    assert python("-c", script, path=[site]).stdout.strip() == "0"
