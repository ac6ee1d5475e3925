"""The versions that records name."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import hfsae
from hfsae.versions import version_of

ROOT = Path(__file__).parents[1]


def test_an_installed_package_tells_its_version_and_hfsae_that_which_runs():
    assert version_of("transformers") == version("transformers") and version_of("hfsae") == hfsae.__version__
    assert version_of("never-heard-of") == "unknown"


# What is installed here is hidden from the copy, as where nothing is.
CODE = """
import importlib.metadata as metadata
import hfsae
from hfsae.versions import version_of

def hidden(cls, name):
    raise metadata.PackageNotFoundError(name)

metadata.Distribution.from_name = classmethod(hidden)
print(hfsae.__file__, version_of("hfsae"), version_of("torch"))
"""


def test_a_source_tree_that_was_never_installed_knows_its_version(tmp_path):
    shutil.copytree(ROOT / "hfsae", tmp_path / "hfsae", ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    python = [sys.executable, "-c", CODE]
    done = subprocess.run(python, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    place, own, torch = done.stdout.split()
    assert Path(place).is_relative_to(tmp_path) and own == hfsae.__version__ and torch[0].isdigit()
