"""What pyproject.toml and constraints.txt ask a package index for; `make resolve` asks a real one."""

import re
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CHOSEN_BY_TORCH = re.compile("triton|nvidia-.*|cuda-.*")


def _pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (Requirement(line) for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_what_torch_pins_is_not_pinned_again():
    if not _pins()["torch"].specifier.contains(version("torch"), prereleases=True):
        pytest.skip("what the pinned torch pins is told where it is installed")
    exact = {
        canonicalize_name(wanted.name)
        for wanted in map(Requirement, requires("torch") or [])
        if any(one.operator == "==" for one in wanted.specifier)
    }
    pinned = _pins().keys()
    assert "torch" in pinned
    assert not exact & pinned
    assert not [name for name in pinned if CHOSEN_BY_TORCH.fullmatch(name)]


def test_the_pinned_versions_lie_in_the_ranges_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["test"]]
    pins = _pins()
    for wanted in map(Requirement, asked):
        for pin in pins[canonicalize_name(wanted.name)].specifier if canonicalize_name(wanted.name) in pins else ():
            assert wanted.specifier.contains(pin.version), wanted


def test_the_floor_of_numpy_is_one_that_pyarrow_imports_with():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    numpy = next(wanted for wanted in map(Requirement, project["dependencies"]) if wanted.name == "numpy")
    assert not numpy.specifier.contains("1.26.4") and numpy.specifier.contains("2.0.0")
