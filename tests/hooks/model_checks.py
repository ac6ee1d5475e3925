"""What every model type is held to, place by place: torch hooks, the hidden states that models report, arithmetic."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae import SAE, TopKSAEConfig
from hfsae.hooks import (
    HookPoint,
    HookPointError,
    available_hook_points,
    capture,
    resolve_hook_points,
    splice,
    width,
)
from hfsae.hooks.layout import LAYER_ROLES, DecoderLayout
from tests.hooks.model_types import HIDDEN, text_ids, tiny_model
from tests.hooks.witness import recorded

WITHOUT_PORTABLE_NAMES = {
    "blt": (r"cannot tell the decoder layers of BltForCausalLM", "model.global_transformer.layers.1.output"),
    "hrm_text": (r"L_module.layers \(4\), model.H_module.layers \(4\)", "model.H_module.layers.1.output@1"),
    "prophetnet": (r"streams that predict n-grams behind the tokens' own", "prophetnet.decoder.layers.1.output"),
    "reformer": (r"takes 'prev_attn_output' beside 'hidden_states'", "reformer.encoder.layers.1.attention.output"),
    "xlm": (r"transformer.attentions \(4\), transformer.ffns \(4\)", "transformer.ffns.1.output"),
}
"""Types whose blocks cannot be told, with the reason that the user reads, and a place that has a module path."""

SKIPPED_LAYERS = {"mllama": {3}}
"""Layers that text alone does not pass."""

HIDDEN_STATES_AFTER_THE_BLOCK = {"mamba", "mamba2", "falcon_mamba", "rwkv"}
"""Types whose `hidden_states` begin with what the first block returns (5.23.0 and 5.24.0: findings/)."""

TIME_MAJOR = {"xlnet"}
"""Types whose blocks pass (seq, batch, d)."""


PROMPT_IN_FRONT = {"cpmant": 32}
"""Rows that a type puts before the tokens' own."""

CODEBOOKS = {"musicgen": 4, "musicgen_melody": 4}
"""Rows of ids that a type makes one sequence of."""


LOOPED = {"dory"}
"""Types that run their blocks several times in one forward pass; the last time is tried."""

UNMATCHED = {*PROMPT_IN_FRONT, *CODEBOOKS}
"""Types whose activations can be read, but not matched with tokens, which an SAE must be."""

ONE_SEQUENCE_A_CACHE = {"rwkv"}
"""Types that return (batch, batch, vocabulary) when a batch goes on from a cache."""

NOT_BUILT = {
    "gemma3n": (ImportError, "requires the timm library"),
    "gemma4_assistant": (ValueError, "producing a cache is different"),
    "gemma4_unified_assistant": (ValueError, "producing a cache is different"),
}
"""Types that a release of transformers cannot build from a config alone, with its own error."""

NOT_RUN = {
    "gemma4_assistant": "shared_kv_states cannot be None",
    "gemma4_unified_assistant": "shared_kv_states cannot be None",
}
"""Types that do not run on token ids alone, with transformers' own error."""


class Subject:
    """One type's model, what it offers, and one forward pass of it."""

    def __init__(self, model_type: str):
        self.model_type = model_type
        self.model: PreTrainedModel = tiny_model(model_type)
        self.layout = DecoderLayout(self.model)
        skipped = SKIPPED_LAYERS.get(model_type, set())
        offered = available_hook_points(self.model)
        self.inputs = {"input_ids": text_ids(self.model)}
        self.layers = [layer for layer in range(len(self.layout.blocks)) if layer not in skipped]
        self.visits = visits(self.model, [point.path for point in offered.values()], self.inputs)
        self.places: dict[str, HookPoint] = {}
        for name, point in offered.items():
            if self.layout.layer_of(point.path) in skipped:
                continue
            if self.visits[point.path] > 1 and point.visit is None:
                assert model_type in LOOPED, name
                name, point = (
                    f"{name}@{self.visits[point.path] - 1}",
                    replace(point, visit=self.visits[point.path] - 1),
                )
            self.places[name] = point
        with torch.no_grad():
            self.logits = self.model(**self.inputs).logits
        with capture(self.model, list(self.places)) as found:
            self.found = dict(found.run(**self.inputs))

    def name(self, role: str, layer: int) -> str:
        """A place's name with what its model needs: a visit where blocks run several times, one of several streams."""
        times = self.visits[self.layout.block_path(layer)]
        if self.layout.streams and role in ("resid_pre", "resid_post"):
            return f"{role}.{layer}[0]"
        return f"{role}.{layer}@{times - 1}" if times > 1 else f"{role}.{layer}"

    def roles(self, layer: int) -> dict[str, Tensor]:
        """What was captured in one layer, by role."""
        names = {role: self.name(role, layer) for role in LAYER_ROLES}
        return {role: self.found[name] for role, name in names.items() if name in self.found}

    def edited(self, place: str, change: Tensor, read: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """What other places and the logits are when something is added at a place."""
        with torch.no_grad(), splice(self.model, place, lambda x: x + change.to(x.dtype)):
            with capture(self.model, read, stop=False) as found:
                found.run(**self.inputs)
        return dict(found), found.output.logits


def visits(model: PreTrainedModel, paths: list[str], inputs: dict[str, Tensor]) -> Counter[str]:
    """How often a forward pass calls each module."""
    counted: Counter[str] = Counter()
    handles = [
        model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: counted.update([path]))
        for path in set(paths)
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return counted


def every_place_is_what_its_name_says(model_type: str) -> None:
    """Everything that holds of one forward pass; what cannot be served ends in one clear error."""
    try:
        tiny_model(model_type)
    except NOT_BUILT.get(model_type, (ZeroDivisionError, ""))[0] as error:
        assert NOT_BUILT[model_type][1] in str(error)
        return
    if model_type in WITHOUT_PORTABLE_NAMES:
        return portable_names_say_why_there_are_none(model_type)
    if model_type in NOT_RUN:
        with pytest.raises(ValueError, match=NOT_RUN[model_type]):
            Subject(model_type)
        return
    subject = Subject(model_type)
    for check in (
        captures_are_what_plain_hooks_see,
        transformer_lens_names_lead_to_places_that_are_passed,
        the_stream_is_what_the_model_reports,
        branches_add_up,
        edits_move_the_stream_by_what_they_add,
        identity_changes_nothing,
        every_place_has_an_effect,
        capturing_early_stops_early,
        widths_are_those_of_the_activations,
    ):
        check(subject)


def portable_names_say_why_there_are_none(model_type: str) -> None:
    """And module paths are there all the same."""
    reason, place = WITHOUT_PORTABLE_NAMES[model_type]
    model = tiny_model(model_type)
    for ask in (available_hook_points, lambda model: resolve_hook_points(model, "resid_post.1")):
        with pytest.raises(HookPointError, match=reason):
            ask(model)
    with capture(model, place) as found:
        found.run(input_ids=text_ids(model))
    assert found[place].shape[-1] == width(model, place) == HIDDEN


def captures_are_what_plain_hooks_see(subject: Subject) -> None:
    batch, seq = subject.inputs["input_ids"].shape
    shape = (batch // CODEBOOKS.get(subject.model_type, 1), seq + PROMPT_IN_FRONT.get(subject.model_type, 0))
    points = {name: point for name, point in subject.places.items() if name != "embed"}
    with torch.no_grad(), recorded(subject.model, [whole(point) for point in points.values()]) as seen:
        subject.model(**subject.inputs)
    for name, point in points.items():
        captured, expected = subject.found[name], seen[whole(point)]
        if point.stream is not None:
            expected = expected[point.stream] if subject.model_type == "gemma3n_text" else expected[:, :, point.stream]
        if subject.model_type in TIME_MAJOR and expected.dim() == 3:
            expected = expected.transpose(0, 1)
        assert captured.shape[:2] == shape, f"{name}: {tuple(captured.shape)}"
        assert torch.equal(captured.flatten(), expected.flatten()), name


def transformer_lens_names_lead_to_places_that_are_passed(subject: Subject) -> None:
    if subject.model_type in LOOPED:
        return
    points = {
        f"blocks.{layer}.{tail}": point
        for layer in subject.layers
        for tail, point in subject.layout.transformer_lens_places(layer).items()
    }
    with torch.no_grad(), recorded(subject.model, [str(point) for point in points.values()]) as seen:
        subject.model(**subject.inputs)
    if points:
        with capture(subject.model, list(points)) as found:
            found.run(**subject.inputs)
        for name, point in points.items():
            assert torch.equal(found[name].flatten(), seen[str(point)].flatten()), name


def whole(point: HookPoint) -> str:
    """A place's canonical name without what follows the side."""
    return f"{point.path}.{point.side}"


def the_stream_is_what_the_model_reports(subject: Subject) -> None:
    streams = [f"[{stream}]" for stream in range(subject.layout.streams.number)] if subject.layout.streams else [""]
    for before, after in zip(subject.layers, subject.layers[1:], strict=False):
        for stream in streams:
            left, right = subject.name("resid_post", before), subject.name("resid_pre", after)
            if subject.visits[subject.layout.block_path(before)] == subject.visits[subject.layout.block_path(after)]:
                left, right = left.replace("[0]", stream), right.replace("[0]", stream)
                assert torch.equal(subject.found[left], subject.found[right]), right
    final_norm = next((name for name in subject.found if name.startswith("final_norm")), None)
    if final_norm:
        base = subject.model.base_model
        with torch.no_grad():
            last = (subject.model.model if base is subject.model else base)(**subject.inputs)[0]
        assert torch.equal(subject.found[final_norm][:, -last.shape[1] :], last), final_norm
    if streams != [""] or subject.model_type in LOOPED:
        return
    with torch.no_grad():
        reported = subject.model(**subject.inputs, output_hidden_states=True).hidden_states
    offset = 1 if subject.model_type in HIDDEN_STATES_AFTER_THE_BLOCK else 0
    for layer in subject.layers[offset:]:
        tokens = subject.found[f"resid_pre.{layer}"][:, -reported[0].shape[1] :]  # without a prompt of the model's own
        assert torch.equal(tokens, reported[layer - offset]), f"resid_pre.{layer}"


def branches_add_up(subject: Subject) -> None:
    for layer in subject.layers:
        here = subject.roles(layer)
        if {"attn_out", "resid_mid"} <= here.keys():
            close(here["resid_pre"] + here["attn_out"], here["resid_mid"], f"resid_mid.{layer}")
        if subject.layout.after_the_branches(layer):
            continue
        if {"mlp_out", "resid_mid"} <= here.keys():
            close(here["resid_mid"] + here["mlp_out"], here["resid_post"], f"resid_post.{layer}")
        elif {"attn_out", "mlp_out"} <= here.keys():
            close(here["resid_pre"] + here["attn_out"] + here["mlp_out"], here["resid_post"], f"resid_post.{layer}")
        elif subject.model_type == "nemotron_h":  # one branch a block
            branch = here.get("attn_out", here.get("mlp_out"))
            if branch is not None:
                close(here["resid_pre"] + branch, here["resid_post"], f"resid_post.{layer}")


def edits_move_the_stream_by_what_they_add(subject: Subject) -> None:
    for layer in subject.layers:
        here = subject.roles(layer)
        if subject.layout.after_the_branches(layer) or subject.layout.streams:
            continue
        change = torch.randn_like(here["resid_post"])
        if "mlp_out" in here:
            moved, _ = subject.edited(subject.name("mlp_out", layer), change, [subject.name("resid_post", layer)])
            close(moved[subject.name("resid_post", layer)], here["resid_post"] + change, f"mlp_out.{layer}")
        if {"mlp_out", "resid_mid"} <= here.keys():
            moved, _ = subject.edited(
                subject.name("resid_mid", layer),
                change,
                [subject.name("mlp_out", layer), subject.name("resid_post", layer)],
            )
            branch = moved[subject.name("mlp_out", layer)] - here["mlp_out"]
            close(moved[subject.name("resid_post", layer)], here["resid_post"] + change + branch, f"resid_mid.{layer}")
        if {"attn_out", "resid_mid"} <= here.keys():
            moved, _ = subject.edited(subject.name("attn_out", layer), change, [subject.name("resid_mid", layer)])
            close(moved[subject.name("resid_mid", layer)], here["resid_mid"] + change, f"attn_out.{layer}")


def identity_changes_nothing(subject: Subject) -> None:
    for place in subject.places:
        with torch.no_grad(), splice(subject.model, place, lambda x: x.clone()):
            assert torch.equal(subject.model(**subject.inputs).logits, subject.logits), place


def every_place_has_an_effect(subject: Subject) -> None:
    for place, value in subject.found.items():
        _, logits = subject.edited(place, torch.randn_like(value), [place])
        assert (logits - subject.logits).abs().max() > 1e-4, place


def capturing_early_stops_early(subject: Subject) -> None:
    if subject.model_type in LOOPED:
        return
    first = subject.name("resid_post", 0)

    def went_on(*_: object) -> None:
        raise AssertionError("the last block ran")

    handle = subject.layout.blocks[subject.layers[-1]].register_forward_pre_hook(went_on)
    try:
        with capture(subject.model, first) as found:
            found.run(**subject.inputs)
    finally:
        handle.remove()
    assert torch.equal(found[first], subject.found[first])


def widths_are_those_of_the_activations(subject: Subject) -> None:
    for place, value in subject.found.items():
        assert width(subject.model, place) == value.shape[-1], place


def generating_with_a_cache_is_generating_without(model_type: str) -> None:
    """Under `attach(splice=True)`, which leaves position 0 alone: the logits of every step."""
    if model_type in NOT_BUILT or model_type in WITHOUT_PORTABLE_NAMES:
        return
    subject = Subject(model_type)
    name = subject.name("resid_post", 1)
    size = subject.found[name].shape[-1]
    torch.manual_seed(3)
    config = TopKSAEConfig(d_in=size, n_features=2 * size, k=4, hook_point=str(subject.places[name]))
    sae = SAE.from_config(config).eval()
    if model_type in UNMATCHED:
        why = "cannot be matched with tokens|before them"
        with pytest.raises(ValueError, match=why), torch.no_grad(), sae.attach(subject.model, splice=True):
            subject.model(**subject.inputs)
        return
    plain = {use_cache: steps(subject, use_cache) for use_cache in (True, False)}
    spliced = {}
    for use_cache in plain:
        with sae.attach(subject.model, splice=True):
            spliced[use_cache] = steps(subject, use_cache)
    assert not torch.allclose(spliced[True], plain[True], atol=1e-2), "the splice did nothing"
    its_own = float((plain[True] - plain[False]).abs().max())  # as far as the model itself differs
    torch.testing.assert_close(spliced[True], spliced[False], rtol=0, atol=1e-3 + 10 * its_own)


def steps(subject: Subject, use_cache: bool) -> Tensor:
    """(steps, batch, vocabulary) of a greedy generation."""
    batch = 1 if subject.model_type in ONE_SEQUENCE_A_CACHE else None
    with torch.no_grad():
        output = subject.model.generate(
            input_ids=subject.inputs["input_ids"][:batch],
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.stack(output.logits)


def close(left: Tensor, right: Tensor, where: str) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4, msg=lambda text: f"{where}: {text}")
