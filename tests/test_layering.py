"""Who imports whom, and what may not stand in the library's code at all."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hfsae"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part of the package may import besides itself: in functions and for type checking too. Nothing may import
# `cli`. The parts stand from the lowest to the highest.
PLAIN = {
    "storage",
    "folders",
    "sae_folders",
    "connection",
    "differences",
    "failures",
    "finite_numbers",
    "guests",
    "host_memory",
    "in_use",
    "interruption",
    "notebook",
    "processes",
    "progress",
    "suggestions",
}
READING = {"hooks", "data"}
COMPUTING = PLAIN | {"functional", "configuration", "autoencoder"}
SAE = COMPUTING | {"saving", "interop", "loading"}
USE = (
    SAE
    | READING
    | {"identity", "model_kwargs", "model_classes", "language_model", "versions", "in_model", "attachment"}
)
MODEL = USE | {"label_file", "evaluation", "hub", "modeling"}
RUN = {"arguments", "parallel", "inputs"}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(PLAIN | {"versions", "model_cards", "model_classes", "command_line", "hooks", "webpage"}, set()),
    "model_kwargs": {"suggestions"},
    "functional": {"finite_numbers", "notebook"},
    "configuration": {"notebook", "suggestions"},
    "data": {"hooks", *PLAIN},
    "autoencoder": COMPUTING - {"autoencoder"},
    "saving": {"configuration", "storage"},
    "identity": COMPUTING,
    "label_file": {"saving", "identity"},
    "language_model": {"configuration", "hooks", "model_classes", "model_kwargs", *PLAIN},
    "interop": COMPUTING | {"hooks", "saving"},
    "in_model": {"configuration", *READING, *PLAIN},
    "attachment": COMPUTING | READING | {"in_model"},
    "loading": COMPUTING | {"interop"},
    "evaluation": USE,
    "hub": USE | {"label_file", "evaluation"},
    "modeling": MODEL - {"modeling"},
    "architectures": {*COMPUTING, "modeling"},
    "analysis": USE | {"evaluation", "hub"},
    "saved": MODEL | {"analysis"},
    "tables": USE | {"evaluation", "analysis"},
    "arguments": COMPUTING | READING | {"command_line", "model_kwargs", "in_model"},
    "parallel": COMPUTING | {"arguments"},
    "inputs": USE | {"evaluation", "arguments", "parallel"},
    "kl_finish": USE | {"evaluation", "arguments", "inputs"},
    "diffing": USE | {"evaluation", "hub"},
    "estimate": MODEL | RUN | {"kl_finish"},
    "run_inputs": MODEL | RUN,
    "training": MODEL | RUN | {"kl_finish", "analysis", "run_inputs"},
    "sweeps": MODEL | RUN | {"estimate", "training"},
    "dashboard": MODEL | {"saved", "analysis", "diffing", "scores", "webpage"},
    "meaning": MODEL | {"saved", "analysis"},
    "circuits": MODEL | {"architectures", "saved", "analysis", "webpage"},
    "steering": MODEL | {"saved", "analysis", "webpage"},
    "scores": MODEL | {"analysis"},
    "serving": MODEL | {"saved", "analysis", "circuits", "webpage"},
    "cli": MODEL
    | RUN
    | {"command_line", "saved", "analysis", "estimate", "training", "sweeps", "dashboard", "diffing", "circuits"}
    | {"tables", "meaning", "steering", "serving", "scores"},
}

# What `import hfsae` may load of the package; everything else waits for its first use.
EAGER = COMPUTING | {"loading", "modeling", "architectures"}
# Where modules are imported by name.
BY_NAME = {"hfsae/__init__.py", "hfsae/cli/__init__.py", "hfsae/interop/formats.py", "hfsae/training/__init__.py"}
# Packages whose objects are part of another's interface, and so always come with it.
COMES_WITH = {"markupsafe": "jinja2", "umap": "umap-learn"}


class Import(NamedTuple):
    """An import statement: the module it names, its line, and whether it runs when the file is imported."""

    module: str
    line: int
    eager: bool


def imports_of(path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, eager: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner = eager and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = False
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, inner) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: imports are absolute"
                names = [alias.name for alias in child.names] if child.module == "hfsae" else [""]
                yield from (Import(f"{child.module}.{name}".strip("."), child.lineno, inner) for name in names)
            yield from walk(child, inner)

    return walk(ast.parse(path.read_text()), eager=True)


def part_of(module: str) -> str:
    """`"hooks"` for `hfsae.hooks.names`."""
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def own_imports() -> Iterator[tuple[Path, str, Import]]:
    """Every import of the package by itself, with the part that the importing file belongs to."""
    for path in FILES:
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for found in imports_of(path):
            if found.module.split(".")[0] == "hfsae":
                yield path, part, found


def test_every_part_of_the_package_has_its_place():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts - {"__init__"} <= MAY_IMPORT.keys()


def test_the_table_itself_has_no_circles():
    done: set[str] = set()
    rest = dict(MAY_IMPORT)
    while ready := {part for part, allowed in rest.items() if allowed <= done}:
        done |= ready
        rest = {part: allowed for part, allowed in rest.items() if part not in ready}
    assert not rest
    assert not any("cli" in allowed for allowed in MAY_IMPORT.values())


def test_no_file_imports_upward_be_it_inside_of_a_function_or_for_types_alone():
    wrong = [
        f"{name_of(path)}:{found.line}: {part} may not import {found.module}"
        for path, part, found in own_imports()
        if part != "__init__" and part_of(found.module) not in {part, *MAY_IMPORT[part]}
    ]
    assert not wrong


def test_the_package_itself_imports_the_model_alone_when_it_is_loaded():
    eager = {part_of(found.module) for _, part, found in own_imports() if part == "__init__" and found.eager}
    assert eager <= EAGER


def test_nothing_imports_the_command_line():
    assert not [name_of(path) for path, part, found in own_imports() if part_of(found.module) == "cli" != part]


def test_modules_are_imported_by_name_in_one_place():
    """Elsewhere such an import would slip through the tests above."""
    users = {
        name_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
    }
    assert users == BY_NAME


def test_functional_imports_torch_alone_and_its_kernels_triton():
    def packages(folder: Path) -> set[str]:
        found = {found.module.split(".")[0] for path in folder.glob("*.py") for found in imports_of(path)}
        return found - set(sys.stdlib_module_names) - {"hfsae"}

    functional = PACKAGE / "functional"
    assert packages(functional) == {"torch"} and packages(functional / "kernels") == {"torch", "triton"}
    assert {path.parent.name for path in functional.rglob("*.py")} == {"functional", "kernels"}


def normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def test_every_package_that_is_imported_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [name for extra in project.get("optional-dependencies", {}).values() for name in extra]
    declared = {normal(re.split(r"[\s<>=!~\[;]", name)[0]) for name in [*project["dependencies"], *optional]}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in FILES:
        for found in imports_of(path):
            package = found.module.split(".")[0]
            if package not in sys.stdlib_module_names and package != "hfsae":
                names = {normal(name) for name in distributions.get(package, [package])}
                names |= {COMES_WITH.get(package, package)}
                if not names & declared:
                    undeclared.add((name_of(path), package))
    assert not undeclared


IMPORT_AND_LIST = """
import json, sys
import torch, transformers
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization
before = set(sys.modules)
import hfsae
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_the_package_loads_the_model_alone_and_says_nothing():
    """Measured against what torch and transformers load by themselves."""
    run = subprocess.run([sys.executable, "-c", IMPORT_AND_LIST], capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == 1
    loaded = json.loads(run.stdout)
    heavy = {
        "triton",
        "accelerate",
        "datasets",
        "evaluate",
        "matplotlib",
        "tensorboard",
        "trackio",
        "wandb",
        "pandas",
        "jinja2",
        "umap",
    }
    assert not heavy & {module.split(".")[0] for module in loaded}
    assert {part_of(module) for module in loaded if module.startswith("hfsae.")} <= EAGER


# -- what may not stand in the code -----------------------------------------------------------------------------------
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_imported_from_the_future(path: Path):
    """Annotations as strings switch off the type checks of configs and lose the config class of models."""
    assert not [found.line for found in imports_of(path) if found.module == "__future__"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_holds_one_idea_and_no_more_than_400_lines(path: Path):
    assert len(path.read_text().splitlines()) <= 400


def test_training_has_no_more_than_thirteen_files():
    assert len(list((PACKAGE / "training").glob("*.py"))) <= 13


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PACKAGE / "cli"], ids=name_of)
def test_the_library_does_not_print(path: Path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if ast.unparse(call.func) in ("print", "sys.stdout.write")]


MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|Users|work|tmp|mnt|data)/\w")


def documents() -> list[Path]:
    folders = ("hfsae", "examples", "docs", "benchmarks")
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".jinja", ".j2"}
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return [*inside, *(path for path in ROOT.glob("*") if path.suffix in suffixes)]


def test_no_file_names_a_path_of_somebodys_machine():
    assert MACHINE_PATH.search('open("/home/somebody/x")') and not MACHINE_PATH.search("https://a.org/data/x a/data/x")
    named = [name_of(path) for path in documents() if MACHINE_PATH.search(path.read_text())]
    assert not named
