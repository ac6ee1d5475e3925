import ast
import copy
import json
import pickle
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

import hfsae
from hfsae import GatedSAEConfig, SAEConfig, StandardSAEConfig, TopKSAEConfig
from hfsae.architectures import Crosscoder, CrossLayer, architectures

EVERY_CONFIG = [sae.config_class for sae in architectures().values() if not issubclass(sae, Crosscoder | CrossLayer)]
FULL = {
    "d_in": 8,
    "n_features": 32,
    "base_model": "org/lm",
    "base_model_revision": "0" * 40,
    "hook_point": "transformer.h.8.output",
    "context_length": 128,
    "prepend_bos": True,
    "exclude_special_tokens": False,
    "exclude_positions": [0, 1],
    "scale_inputs": False,
    "training": {"n_tokens": 1000, "seconds": 1.5, "arguments": {"lr": None}},
    "metrics": {"l0": 31.9, "notes": {}, "density": {"counts": [1, 2]}},
}


def topk(**fields) -> TopKSAEConfig:
    return TopKSAEConfig(**{"d_in": 8, "n_features": 32, "k": 4, **fields})


# -- sizes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("factor, n_features", [(4, 32), (4.0, 32), (0.5, 4), (1.3, 10)])
def test_an_expansion_factor_sets_the_number_of_features(factor: float, n_features: int):
    config = TopKSAEConfig(d_in=8, expansion_factor=factor, k=2)
    assert config.n_features == n_features
    assert config.expansion_factor == n_features / 8


def test_the_expansion_factor_is_checked_against_n_features_and_not_stored():
    assert "expansion_factor" not in topk(expansion_factor=4).to_dict()
    with pytest.raises(ValueError, match="n_features=32 contradicts expansion_factor=3: 3 × d_in=8 is 24"):
        topk(expansion_factor=3)


def test_an_autoencoder_writes_what_it_reads():
    config = topk()
    assert config.d_out == 8 and not config.is_transcoder
    assert not topk(hook_point="a", target_hook_point="a").is_transcoder


def test_a_transcoder_writes_somewhere_else_perhaps_in_another_size():
    config = topk(hook_point="a", target_hook_point="b", d_out=6, subtract_b_dec=False)
    assert config.is_transcoder and config.d_out == 6


@pytest.mark.parametrize("config_class", EVERY_CONFIG)
@pytest.mark.parametrize(
    "fields, message",
    [
        ({"n_features": 32}, "d_in must be a positive number of dimensions, got 0"),
        ({"d_in": -8, "n_features": 32}, "d_in must be a positive number of dimensions, got -8"),
        ({"d_in": 8}, "n_features must be positive, got 0. Give n_features or a positive expansion_factor"),
        ({"d_in": 8, "n_features": -32}, "n_features must be positive, got -32"),
        ({"d_in": 8, "expansion_factor": -2}, "n_features must be positive, got -16"),
        ({"d_in": 8, "expansion_factor": "4"}, "expansion_factor must be a number, got '4'"),
        ({"d_in": 8, "expansion_factor": True}, "expansion_factor must be a number, got True"),
        ({"d_in": 8, "n_features": 32, "d_out": -1}, "d_out must be a positive number of dimensions, got -1"),
    ],
)
def test_impossible_sizes_are_named_before_anything_else(config_class: type[SAEConfig], fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        config_class(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"d_out": 4, "subtract_b_dec": False}, "an autoencoder writes what it reads, got d_out=4 and d_in=8"),
        ({"d_out": 4, "target_hook_point": "b"}, "subtract_b_dec=True needs d_out == d_in"),
        ({"input_transform": "center", "target_hook_point": "b"}, "has no meaning for a transcoder"),
        ({"aligned": True, "target_hook_point": "b"}, "two places, in a transcoder"),
        ({"exclude_positions": [0, -1]}, "exclude_positions counts from the start of a block"),
        ({"k": 33}, "k must be between 1 and n_features=32, got 33"),
    ],
)
def test_contradictions_are_refused(fields: dict, message: str):
    with pytest.raises(StrictDataclassError, match=message):
        topk(**fields)


# -- names and types --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("config_class", EVERY_CONFIG)
def test_a_mistyped_name_is_an_error_that_knows_what_was_meant(config_class: type[SAEConfig]):
    with pytest.raises(
        ValueError, match=f"{config_class.__name__} has no field 'n_feature'. Did you mean 'n_features'"
    ):
        config_class(d_in=8, n_feature=32)


def test_a_generation_parameter_is_not_swallowed():
    with pytest.raises(ValueError, match="no field 'top_k'"):
        topk(top_k=3)


@pytest.mark.parametrize(
    "fields",
    [
        {"d_in": "8"},
        {"d_in": 8.0},
        {"k": True},
        {"skip": 1},
        {"input_transform": "whiten"},
        {"hook_point": 8},
        {"exclude_positions": (0,)},
        {"training": [1]},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused_at_construction_and_at_assignment(fields: dict):
    with pytest.raises(StrictDataclassError, match=next(iter(fields))):
        topk(**fields)
    with pytest.raises(StrictDataclassError, match=next(iter(fields))):
        setattr(topk(), *next(iter(fields.items())))


def test_saving_refuses_what_assignments_made_contradictory(tmp_path: Path):
    config = topk()
    config.k = 33
    with pytest.raises(StrictDataclassError, match="k must be between"):
        config.save_pretrained(tmp_path)


@cache
def attributes_read_in_the_package() -> set[str]:
    package = Path(hfsae.__file__).parent
    trees = [ast.parse(path.read_text()) for path in package.rglob("*.py")]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize("config_class", EVERY_CONFIG)
def test_there_is_no_field_that_nothing_reads(config_class: type[SAEConfig]):
    own = {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}
    assert own and not own - attributes_read_in_the_package()


# -- there and back ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("config_class", EVERY_CONFIG)
def test_every_field_survives_save_and_load(config_class: type[SAEConfig], tmp_path: Path):
    fields = {**FULL, **({"k": 4} if hasattr(config_class, "k") else {})}
    config = config_class(**fields)
    config.save_pretrained(tmp_path)
    for loaded in (config_class.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is config_class
        assert {name: getattr(loaded, name) for name in fields} == fields
        assert loaded.to_diff_dict() == config.to_diff_dict()


def test_a_key_of_a_newer_version_survives_load_and_save(tmp_path: Path):
    topk().save_pretrained(tmp_path / "old")
    stored = json.loads((tmp_path / "old" / "config.json").read_text())
    stored["from_the_future"] = {"a": [1, 2]}
    (tmp_path / "old" / "config.json").write_text(json.dumps(stored))
    TopKSAEConfig.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["from_the_future"] == {"a": [1, 2]}


def test_a_typo_is_an_error_again_after_loading(tmp_path: Path):
    topk().save_pretrained(tmp_path)
    TopKSAEConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no field"):
        topk(from_the_future=1)


def test_a_stored_config_that_lost_its_size_is_an_error(tmp_path: Path):
    topk().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["n_features"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="n_features must be positive"):
        TopKSAEConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("config_class", EVERY_CONFIG)
def test_copies_are_equal_and_independent(config_class: type[SAEConfig], clone):
    config = config_class(**{**FULL, "n_features": 320})
    copied = clone(config)
    assert copied == config and type(copied) is config_class
    copied.exclude_positions.append(5)
    copied.d_in = 4
    assert config.exclude_positions == [0, 1] and config.d_in == 8
    with pytest.raises(StrictDataclassError):
        copied.d_in = "4"


def test_defaults_are_not_shared_between_configs():
    first, second = topk(), topk()
    first.exclude_positions.append(7)
    assert second.exclude_positions == [0] == topk().exclude_positions


def test_only_topk_style_configs_have_k():
    with pytest.raises(ValueError, match="StandardSAEConfig has no field 'k'"):
        StandardSAEConfig(d_in=8, n_features=32, k=4)
    with pytest.raises(ValueError, match="GatedSAEConfig has no field 'k'"):
        GatedSAEConfig(d_in=8, n_features=32, k=4)


def test_no_version_of_transformers_makes_a_config_without_sizes():
    """Some versions compare with an empty config when they save, unless the class says that there is none."""
    assert TopKSAEConfig.has_no_defaults_at_init
    with pytest.raises(ValueError, match="d_in"):
        TopKSAEConfig()


TRAINED = {
    "base_model": "openai-community/gpt2",
    "base_model_revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "hook_point": "transformer.h.8.output",
    "training": {"n_tokens": 4_000_000, "dataset": "org/text"},
    "metrics": {"l0": 32.0, "explained_variance": 0.93},
}


def test_repr_is_one_line_with_what_differs_from_the_defaults():
    assert repr(TopKSAEConfig(d_in=8, n_features=32)) == "TopKSAEConfig(d_in=8, n_features=32, k=32)"
    shown = repr(TopKSAEConfig(d_in=8, n_features=32, k=4, **TRAINED))
    assert shown.startswith("TopKSAEConfig(d_in=8, n_features=32, k=4, base_model='openai-community/gpt2', ")
    assert "base_model_revision='607a30d7…', hook_point='transformer.h.8.output'" in shown
    assert shown.endswith("training={…}, metrics={…})")


def test_the_repr_of_a_small_config_makes_it_again():
    config = TopKSAEConfig(d_in=8, d_out=4, n_features=32, target_hook_point="b", hook_point="a", subtract_b_dec=False)
    assert eval(repr(config)).to_dict() == config.to_dict()


def test_a_summary_says_where_an_sae_reads_and_what_was_measured():
    summary = TopKSAEConfig(d_in=8, n_features=32, k=4, **TRAINED).summary()
    assert summary["features"] == "32 (4x of d_in = 8)" and summary["of"] == "openai-community/gpt2 @ 607a30d783df"
    assert summary["trained on"] == "4,000,000 tokens of org/text"
    assert summary["measured"] == "l0 32, explained_variance 0.93"
    assert "<td" in TopKSAEConfig(d_in=8, n_features=32)._repr_html_()


def test_tab_completes_the_fields_and_not_what_transformers_has_for_language_models():
    names = dir(TopKSAEConfig(d_in=8, n_features=32))
    assert {"d_in", "k", "hook_point", "expansion_factor", "save_pretrained", "from_pretrained"} <= set(names)
    assert not {"rope_scaling", "id2label", "is_encoder_decoder", "get_text_config"} & set(names)
