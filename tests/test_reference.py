"""The site: every public name stands on a page, every page in the menu, and what pages say of the code holds."""

import ast
import json
import re
import runpy
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfsae import SAE, SAETrainingArguments, TopKSAEConfig
from hfsae.architectures import config_class_of
from tests.architectures.variants import sources

REGISTERED = ["standard", "topk", "abs_topk", "matching_pursuit", "batch_topk", "matryoshka", "jumprelu", "gated"]
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PARTS = sorted(path.parent.name for path in (ROOT / "hfsae").glob("*/__init__.py") if "__all__" in path.read_text())
PUBLIC = ["hfsae", *(f"hfsae.{part}" for part in PARTS)]


def shown() -> dict[str, Any]:
    """What the pages show, by the name that they use."""
    pages = [page.read_text() for page in (DOCS / "reference").glob("*.md")]
    names = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M)]
    assert len(names) == len(set(names)), "a name stands on two pages"
    found = {name: getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}
    for name, one in found.items():
        home = getattr(one, "__module__", "")
        if home.endswith(f".{name.rpartition('.')[2]}"):
            assert name.startswith(home), f"the page would show the module {home}: name what is in it"
    return found


def leaves(menu: Any) -> Iterator[str]:
    if isinstance(menu, str):
        yield menu
    else:
        for entry in menu.values() if isinstance(menu, dict) else menu:
            yield from leaves(entry)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_stands_on_a_page(module):
    on_pages = shown().values()
    public = import_module(module)
    assert not [name for name in public.__all__ if not any(getattr(public, name) is one for one in on_pages)]


def test_every_page_is_in_the_menu_once():
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert pages == sorted(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "scripts" / f"{name}.py"))


def test_the_page_of_arguments_is_made_from_the_arguments_there_are():
    made = script("arguments_page")["page"]()
    assert made == (DOCS / "arguments.md").read_text(), "run python docs/scripts/arguments_page.py"
    for option in fields(SAETrainingArguments):
        assert f"| `{option.name}`" in made


def test_the_import_graph_is_that_of_the_code():
    graph = script("import_graph")
    assert graph["drawn"]() == (DOCS / "import_graph.svg").read_text(), "run python docs/scripts/import_graph.py"
    assert max(graph["floors"](graph["imports"]()).values()) < 11
    with pytest.raises(ValueError, match="a circle among attach, hooks"):
        graph["floors"]({"attach": {"hooks"}, "hooks": {"attach"}, "storage": set()})


def test_what_the_architecture_page_names_is_where_it_says():
    page = (DOCS / "architecture.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| `(hfsae/[\w/]+\.py)` \| `([\w.]+)` \|$", page, re.M)
    assert len(rows) >= 12
    for path, name in rows:
        one: Any = import_module(path.removesuffix(".py").replace("/", "."))
        for part in name.split("."):
            one = getattr(one, part)
    files = re.findall(r"`((?:[a-z_]+/)?[a-z_]+\.py)`", page)
    assert len(files) >= 20
    assert not [path for path in files if not (ROOT / path).exists() and not (ROOT / "hfsae" / path).exists()]


def texts_of_the_code() -> Iterator[str]:
    """Every text of the package, with `{}` for what is filled in."""
    for path in (ROOT / "hfsae").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    page = (DOCS / "troubleshooting.md").read_text()
    messages = [message.replace(" ... ", " {} ") for message in re.findall(r"^\| `([^`]+)` \|", page, re.M)]
    assert len(messages) >= 40
    everything = "\n".join(texts_of_the_code())
    assert not [message for message in messages if message not in everything]


def test_the_tensors_of_the_page_on_formats_are_those_of_the_architectures():
    page = (DOCS / "file_formats.md").read_text().partition("## The tensors of an SAE")[2]
    told = {name for cell in re.findall(r"^\| (`[^|]+) \|", page, re.M) for name in re.findall(r"`([\w.]+)`", cell)}
    transcoder = {"skip": True, "subtract_b_dec": False, "target_hook_point": "b.output"}
    configs = [config_class_of(name)(d_in=4, n_features=64, **sources(name, 4)) for name in REGISTERED]
    configs += [TopKSAEConfig(d_in=4, n_features=16, k=4, hook_point="a.output", **transcoder)]
    assert told == {name for config in configs for name in SAE.from_config(config).state_dict()}


def test_fields_of_a_newer_version_are_kept(tmp_path):
    SAE.from_config(TopKSAEConfig(d_in=4, n_features=16, k=4)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"of_tomorrow": 3}))
    SAE.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["of_tomorrow"] == 3
