"""The built wheel holds all that the installed package needs, the card templates included."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("hfsae", "hfsae_cli.py", "pyproject.toml", "README.md", "LICENSE")

RENDER = """
from importlib.resources import files
from pathlib import Path
import hfsae
from hfsae.hub import write_card
hfsae.TopKSAEConfig(d_in=8, n_features=32, k=4, base_model="org/lm").save_pretrained("sae")
print(hfsae.__file__)
print(files("hfsae.model_cards"))
print("library_name: hfsae" in write_card("sae").read_text())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of an earlier build gets in and nothing is left in the tree."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(source)]
    said = subprocess.run(build, check=True, capture_output=True, text=True, timeout=300)
    assert "Package would be ignored" not in said.stdout + said.stderr
    return next(built.glob("hfsae-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_template_and_nothing_else(wheel: Path):
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hfsae").rglob("*.py")}
    templates = {f"hfsae/model_cards/{path.name}" for path in (ROOT / "hfsae/model_cards").glob("*.jinja")}
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hfsae").glob("*/assets/*")}
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hfsae/configs").glob("*.yaml")}
    data = {"hfsae/py.typed", "hfsae/interop/catalogue.json", *configs}
    assert len(configs) >= 4
    assert modules | templates | assets | data <= packed
    assert {name.split("/")[0] for name in packed if not name.startswith("hfsae-")} == {"hfsae", "hfsae_cli.py"}


@pytest.mark.slow
def test_an_editable_install_is_a_path_and_says_nothing(tmp_path: Path):
    """A finder with a table of packages makes setuptools print a notice."""
    build = "from setuptools.build_meta import build_editable; print(build_editable('.'))"
    shutil.copytree(ROOT / "hfsae", tmp_path / "hfsae", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES[1:]:
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-W", "error:Editable installation", "-c", build]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)
    assert "BuildBackendWarning" not in said.stdout + said.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert [name for name in names if name.startswith("__editable__")] == ["__editable__.hfsae-0.1.0.pth"]


@pytest.mark.slow
def test_an_installed_wheel_writes_a_card(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, timeout=300)
    rendered = subprocess.run(
        [sys.executable, "-c", RENDER],
        env=os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    package, templates, rendered_well = rendered.stdout.split()
    assert rendered_well == "True"
    assert Path(package).is_relative_to(site) and Path(templates).is_relative_to(site), "not those of this checkout"


@pytest.mark.slow
def test_an_installed_wheel_has_the_command_and_configs_by_name(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, timeout=300)
    listed = subprocess.run(
        [str(site / "bin" / "hfsae"), "sweep", "sweep", "--list"],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert len(listed.stdout.splitlines()) == 12
