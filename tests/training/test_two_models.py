"""Crosscoders of two language models in a run: one place of both, from text, from a cache, and what is refused."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from hfsae import SAE, CrosscoderSAEConfig, cache_activations
from hfsae.estimate.run_needs import estimate
from hfsae.hooks import SideBySide, capture
from hfsae.in_model import SAEHookPoints, hook_points_named
from hfsae.inputs import streams
from hfsae.inputs.base_model import open_base_model
from hfsae.saved.measuring_again import evaluate_saved
from tests.data.tiny import chat_tokenizer, language_model, make_tokenizer, pythia_like
from tests.training.tiny import D_IN, arguments, contents, stop_at, text, trainer

PLACE = "transformer.h.1.output"


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> dict[str, Path]:
    """A model and what was made of it, in folders with one tokenizer."""
    root = tmp_path_factory.mktemp("pair")
    folders = {"base": root / "base", "tuned": root / "tuned"}
    torch.manual_seed(5)
    for change, folder in enumerate(folders.values()):
        lm = language_model()
        with torch.no_grad():
            for block in lm.transformer.h:
                block.mlp.c_proj.weight.add_(0.3 * change * torch.randn_like(block.mlp.c_proj.weight))
        lm.save_pretrained(folder)
        pythia_like().save_pretrained(folder)
    return folders


def options_of(pair: dict[str, Path], **more) -> dict:
    named = {"model_name_or_path": str(pair["base"]), "compare_model_name_or_path": str(pair["tuned"])}
    inputs = {"model": None, "processing_class": None}
    return {"inputs": inputs, "architecture": "crosscoder", **named, **more}


# -- what is read -----------------------------------------------------------------------------------------------------
def test_rows_are_those_that_each_model_has_alone_on_the_same_tokens(pair):
    args = arguments(
        "unused", **{k: v for k, v in options_of(pair).items() if k != "inputs"}, activation_dtype="float32"
    )
    both = open_base_model(args, None, None, torch.device("cpu"))
    place = hook_points_named(both.model, args.hook_point, None)[0].reads
    assert place == f"base.{PLACE}+tuned.{PLACE}"
    source = streams.model_source(args, both, streams.training_blocks(args, text(), both), place.split("+"))
    first = next(iter(source))
    for name, folder in pair.items():
        lm = type(both.model.models[name]).from_pretrained(folder).eval()
        blocks = streams.training_blocks(args, text(), both)
        batch = next(iter(blocks))
        with capture(lm, PLACE) as read, torch.no_grad():
            read.run(input_ids=batch.input_ids)
        torch.testing.assert_close(first[f"{name}.{PLACE}"], read[PLACE][batch.keep], rtol=1e-4, atol=1e-4)
    source.close()
    assert not torch.equal(*first.values())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resid_post.*", ["transformer.h.0.output", "transformer.h.1.output", "transformer.h.2.output"]),
        ("resid_post.-1, mlp_out.0", ["transformer.h.2.output", "transformer.h.0.mlp.output"]),
    ],
)
def test_wildcards_and_commas_name_a_crosscoder_each(name, found):
    models = SideBySide({"base": language_model(), "tuned": language_model()})
    points = hook_points_named(models, name, None)
    assert points == [SAEHookPoints(f"base.{place}+tuned.{place}") for place in found]


# -- runs -------------------------------------------------------------------------------------------------------------
def test_a_run_is_saved_with_both_models_measured_in_both_and_measured_again(tmp_path, pair):
    run = trainer(tmp_path / "run", steps=20, eval_tokens=300, **options_of(pair)).train()
    loaded = SAE.from_pretrained(tmp_path / "run")
    assert loaded.config.hook_point == PLACE and loaded.config.source_names == ["base", "tuned"]
    assert {name: said["base_model"] for name, said in loaded.config.models_by_source.items()} == {
        name: str(folder) for name, folder in pair.items()
    }
    assert loaded.config.base_model == str(pair["base"])
    assert loaded.config.training["portable_name"] == "resid_post.1"
    metrics = run.metrics[""]
    assert metrics["sources"]["base"]["ce_clean"] != metrics["sources"]["tuned"]["ce_clean"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| `tuned` |" in card and str(pair["base"]) not in card
    assert "of 2 language models side by side: `base` is a model that is not on the Hub, `tuned` is a" in card


def test_the_code_on_its_card_reads_both_models(tmp_path, pair, monkeypatch):
    trainer(tmp_path / "run", **options_of(pair)).train()
    card = (tmp_path / "run" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "run")
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", card, re.S)[1], names)  # type: ignore[index]
    assert names["features"].shape[-1] == 48


def test_objects_by_source_and_names_give_the_same_sae(tmp_path, pair):
    named = trainer(tmp_path / "named", **options_of(pair)).train().sae
    models = {name: language_model().from_pretrained(folder) for name, folder in pair.items()}
    given = trainer(tmp_path / "given", architecture="crosscoder", inputs={"model": models}).train().sae
    assert torch.equal(named.W_dec, given.W_dec)
    config = CrosscoderSAEConfig(source_names=["base", "tuned"], source_widths=[D_IN] * 2, n_features=48, k=4)
    own = trainer(tmp_path / "own", **options_of(pair, inputs={"model": None, "saes": config})).train().sae
    assert torch.equal(named.W_dec, own.W_dec) and own.config.hook_point == PLACE


def test_it_goes_on_bit_by_bit(tmp_path, pair):
    steps, stop = 7, random.Random(3).randrange(1, 7)
    for folder, ends in (("whole", [steps]), ("broken", [stop, steps])):
        for end in ends:
            run = trainer(tmp_path / folder, callbacks=[stop_at(end)], dead_feature_window=40, **options_of(pair))
            run.train(resume_from_checkpoint=True if end == steps and len(ends) > 1 else None)
    whole, broken = (contents(tmp_path / folder / f"checkpoint-{steps}") for folder in ("whole", "broken"))
    assert whole == broken and whole


def test_from_a_cache_it_ends_as_from_the_models_and_the_cache_is_only_for_these(tmp_path, pair):
    options = options_of(pair)
    inputs = options.pop("inputs")
    cache_activations(arguments(tmp_path / "cache", **options), train_dataset=text())
    cached = {**options, "activation_cache": str(tmp_path / "cache"), "eval_tokens": 200}
    from_cache = trainer(tmp_path / "a", inputs=inputs, **cached).train()
    from_models = trainer(tmp_path / "b", inputs=inputs, **options).train()
    assert torch.equal(from_cache.sae.W_dec, from_models.sae.W_dec)
    assert from_cache.sae.config.models_by_source == from_models.sae.config.models_by_source
    assert from_cache.metrics[""]["sources"].keys() == {"base", "tuned"}
    other = {**cached, "compare_model_name_or_path": str(pair["base"])}
    with pytest.raises(ValueError, match="made for another run: compare_model_name_or_path was"):
        trainer(tmp_path / "c", inputs=inputs, **other).train()


def test_an_estimate_counts_both_models(pair):
    options = {name: value for name, value in options_of(pair).items() if name != "inputs"}
    both = estimate(arguments("unused", **options))
    one = estimate(arguments("unused", model_name_or_path=str(pair["base"])))
    assert both.model_parameters == 2 * one.model_parameters
    assert both.model_flops_per_token == 2 * one.model_flops_per_token
    assert both.window_bytes == 2 * one.window_bytes
    assert next(iter(both.saes.values())).parameters == 4 * 48 * D_IN + 48 + 2 * D_IN


def test_eval_measures_a_saved_one_in_its_models(tmp_path, pair):
    documents = tmp_path / "text.jsonl"
    documents.write_text("".join(json.dumps({"text": one}) + "\n" for one in text()["text"]))
    options = options_of(pair, dataset_name=str(documents), inputs={"model": None, "train_dataset": None})
    options["inputs"]["processing_class"] = None
    metrics = trainer(tmp_path / "run", eval_tokens=100, **options).train().metrics[""]
    again = evaluate_saved(tmp_path / "run", write=False)
    for name, figures in metrics["sources"].items():
        assert again["sources"][name]["explained_variance"] == pytest.approx(figures["explained_variance"], rel=1e-4)


# -- what is refused --------------------------------------------------------------------------------------------------
def saved(folder: Path, lm, tokenizer) -> str:
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (
            lambda: make_tokenizer(specials=("<eos>", "<new>"), bos_token="<eos>", eos_token="<eos>"),
            "alone has '<new>'",
        ),
        (lambda: make_tokenizer(specials=("w3", "<eos>"), bos_token="<eos>", eos_token="<eos>"), "have other ids"),
        (lambda: make_tokenizer(bos_token="w1", eos_token="<eos>"), "bos_token_id is 0 and 2"),
    ],
)
def test_unequal_tokenizers_are_refused_before_a_model_is_loaded(tmp_path, pair, tokenizer, message):
    other = tmp_path / "other"
    tokenizer().save_pretrained(other)
    (other / "config.json").write_text((pair["tuned"] / "config.json").read_text())  # no weights lie there
    with pytest.raises(ValueError, match=f"tokenizers of base and tuned are not equal: .*{message}"):
        trainer(tmp_path / "run", **options_of(pair, compare_model_name_or_path=str(other))).train()


def test_a_chat_template_is_no_difference_and_its_tokenizer_is_taken(tmp_path):
    plain, chat = chat_tokenizer(None), chat_tokenizer()
    folders = {name: saved(tmp_path / name, language_model(), one) for name, one in (("a", plain), ("b", chat))}
    args = arguments("unused", model_name_or_path=folders["a"], compare_model_name_or_path=folders["b"])
    assert open_base_model(args, None, None, torch.device("cpu")).tokenizer.chat_template is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "topk"}, "reads one place, but .* joins 2: choose a crosscoder"),
        ({"hook_point": "resid_post.0+resid_post.1"}, "of several models a crosscoder reads one place each"),
        ({"hook_point": "resid_post.7"}, "of the model 'base'.*3 layers"),
        ({"compare_model_name_or_path": " , "}, "names no model"),
        ({"context_length": 65}, "the language model's context is 64"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, pair, change, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options_of(pair, **change)).train()


def test_models_of_other_lengths_are_compared_where_both_have_the_layer_alone(tmp_path, pair):
    longer = saved(tmp_path / "longer", language_model(n_layer=4, n_positions=32), pythia_like())
    options = options_of(pair, compare_model_name_or_path=longer)
    for name in ("resid_post.-1", "resid_post.*"):
        with pytest.raises(
            ValueError, match=r"not in the same layers of every model \(there are 3 in base, 4 in tuned"
        ):
            trainer(tmp_path / "run", hook_point=name, **options).train()
    with pytest.raises(ValueError, match="of the model 'base'.*no layer 3"):
        trainer(tmp_path / "run", hook_point="resid_post.3", **options).train()
    with pytest.raises(ValueError, match="context is 32"):
        trainer(tmp_path / "run", context_length=40, **options).train()
    assert trainer(tmp_path / "run", hook_point="resid_post.1", **options).train().sae.config.hook_point == PLACE


def test_a_config_whose_sources_are_other_models_is_refused(tmp_path, pair):
    config = CrosscoderSAEConfig(source_names=["base", "chat"], source_widths=[D_IN] * 2, n_features=48, k=4)
    with pytest.raises(ValueError, match="sources base, chat, but the models are base, tuned"):
        trainer(tmp_path, **options_of(pair, inputs={"model": None, "saes": config})).train()
