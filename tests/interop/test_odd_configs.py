"""Configs of other projects that hold values of odd kinds: they load, or end in our own error, never in Python's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfsae import SAE
from hfsae.cli import main
from tests.interop.foreign import FOREIGN

ODD: list[Any] = [None, 5, -1, 2.5, 1e400, "x", True, ["x"], [[1]], {"a": {"b": 1}}]
CONFIGURED = [
    *("saelens_standard", "saelens_topk", "saelens_transcoder", "saelens_5_topk", "sparsify_transcoder"),
    *("auto_encoder", "matryoshka", "gemma_scope_2", "llama_scope", "llama_scope_r1", "llamascopium"),
]


def mutations(config: Any) -> Iterator[Any]:
    """The config with one value at a time, at any depth, taken out or replaced by one of an odd kind."""
    for key in config if isinstance(config, dict) else []:
        yield {name: value for name, value in config.items() if name != key}
        for odd in ODD:
            yield {**config, key: odd}
        for inner in mutations(config[key]):
            yield {**config, key: inner}


def loads_or_says_why(foreign, said: list[str]) -> None:
    try:
        SAE.from_pretrained(foreign.path, **foreign.options)
    except (ValueError, OSError) as error:
        said.append(str(error))


@pytest.mark.parametrize("name", CONFIGURED)
def test_values_of_odd_kinds_load_or_end_in_our_own_error(name: str, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    said: list[str] = []
    for file in sorted(tmp_path.rglob("*.json")):
        original = json.loads(file.read_text())
        for config in [*mutations(original), *ODD]:
            file.write_text(json.dumps(config))
            loads_or_says_why(foreign, said)
        file.write_text(json.dumps(original))
    assert len(said) > 20 and all(str(tmp_path) in message or "SAELens" in message for message in said)
    SAE.from_pretrained(foreign.path, **foreign.options)


def test_odd_yaml_likewise(tmp_path: Path):
    foreign = FOREIGN["qwen3_transcoder"](tmp_path)
    file = tmp_path / "repo" / "config.yaml"
    said: list[str] = []
    for config in [*mutations(yaml.safe_load(file.read_text())), *ODD]:
        file.write_text(yaml.safe_dump(config))
        loads_or_says_why(foreign, said)
    assert any("expected a text" in message for message in said)


@pytest.mark.parametrize(
    "name, file, change, message",
    [
        ("saelens_standard", "cfg.json", {"metadata": 5}, "metadata = 5, expected an object"),
        ("saelens_standard", "cfg.json", {"architecture": ["standard"]}, "architecture = ['standard'], which has no"),
        ("saelens_topk", "cfg.json", {"k": None}, "lacks k"),
        ("sparsify_topk", "cfg.json", {"k": None}, "lacks k"),
        (
            "auto_encoder",
            "config.json",
            {"trainer": {"dict_class": "AutoEncoder", "lm_name": 7}},
            "trainer.lm_name = 7",
        ),
        ("llama_scope", "hyperparams.json", {"hook_point_in": None}, "lacks hook_point_in"),
        ("llamascopium", "config.json", {"act_fn": 3}, "act_fn = 3, expected a text"),
    ],
)
def test_info_says_file_key_and_value(name, file, change, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    foreign = FOREIGN[name](tmp_path)
    config = {**json.loads((foreign.path / file).read_text()), **change}
    (foreign.path / file).write_text(json.dumps(config))
    assert main(["info", str(foreign.path), "--allow-pickle"]) == 1
    said = capsys.readouterr().err
    assert message in said and f"{file} of" in said and "Traceback" not in said


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 100_000, b"", b"null", b'"text"'])
def test_what_is_no_object_of_json_is_said(text: bytes, tmp_path: Path):
    foreign = FOREIGN["saelens_standard"](tmp_path)
    (foreign.path / "cfg.json").write_bytes(text)
    with pytest.raises(ValueError):
        SAE.from_pretrained(foreign.path)
