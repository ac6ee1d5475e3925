"""Where SAEs read and write in a language model, by the names that arguments and configs give."""

import pytest
import torch

from hfsae.hooks import HookPointError
from hfsae.in_model import SAEHookPoints, activations_at, hook_points_named, names_of
from tests.data.tiny import language_model
from tests.hooks.families import build

JOINED = "resid_post.0+resid_post.2"
CANONICAL = "transformer.h.0.output+transformer.h.2.output"


@pytest.mark.parametrize(
    ("names", "places"),
    [
        ("resid_post.1", ["1.output"]),
        ("blocks.1.hook_resid_post", ["1.output"]),
        ("resid_post.*", ["0.output", "1.output", "2.output"]),
        ("mlp_out.0-1, resid_post.-1", ["0.mlp.output", "1.mlp.output", "2.output"]),
    ],
)
def test_hook_points_are_names_commas_ranges_and_wildcards(names, places):
    found = hook_points_named(language_model(), names, None)
    assert found == [SAEHookPoints(f"transformer.h.{place}") for place in places]


def test_a_hook_point_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(HookPointError, match=r"no layer 7.*has 3 layers"):
        hook_points_named(language_model(), "resid_post.7", None)


def test_rows_of_joined_places_lie_behind_each_other():
    rows = {"a": torch.ones(3, 2), "b": torch.zeros(3, 1)}
    assert activations_at(rows, "b+a").tolist() == [[0, 1, 1]] * 3 and activations_at(rows, "a") is rows["a"]
    assert names_of([SAEHookPoints("b+a"), SAEHookPoints("c", "a")]) == ["b", "a", "c"]


def test_joined_places_are_one_name_among_others():
    found = hook_points_named(language_model(), f"{JOINED}, resid_post.0-1", None)
    assert [points.reads for points in found] == [CANONICAL, "transformer.h.0.output", "transformer.h.1.output"]
    assert [points.writes for points in found] == [None] * 3


def test_a_transcoder_reads_and_writes_rows_of_its_own():
    points = SAEHookPoints.resolved(language_model(), "mlp_in.1", "mlp_out.1")
    rows = {points.reads: torch.ones(2, 3), points.target: torch.zeros(2, 4)}
    assert points.names == ["transformer.h.1.mlp.input", "transformer.h.1.mlp.output"]
    target = points.target_rows(rows)
    assert points.rows(rows) is rows[points.reads] and target is not None and target is rows[points.target]
    widths = {name: part.shape[1] for name, part in rows.items()}
    assert points.input_widths(widths) == [3] and points.output_width(widths) == 4
    assert points.portable_name(language_model()) == "mlp_in.1"


def test_an_sae_that_writes_where_it_reads_has_no_target_of_its_own():
    points = SAEHookPoints.resolved(language_model(), "resid_post.1", "blocks.1.hook_resid_post")
    assert points == SAEHookPoints("transformer.h.1.output") and points.target == points.reads
    assert points.target_rows({points.reads: torch.ones(1, 1)}) is None


def test_a_place_that_is_joined_with_itself_is_refused():
    with pytest.raises(ValueError, match="joins a place with itself"):
        SAEHookPoints.resolved(language_model(), "resid_post.1+transformer.h.1.output")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resid_post.*+mlp_out.1",
            r"joins 'resid_post\.\*', which names 3 places: every part between \+ is one place",
        ),
        ("mlp_out.1+resid_post.0-1", "joins 'resid_post.0-1', which names 2 places"),
        ("resid_post.1+", "joins a place without a name"),
    ],
)
def test_every_part_of_a_joined_name_is_one_place(name, message):
    with pytest.raises(ValueError, match=message):
        hook_points_named(language_model(), name, None)


def test_names_that_do_not_find_the_same_layers_are_refused():
    names = "model.layers.*.mlp.input", "model.layers.*.self_attn.output"
    with pytest.raises(ValueError, match="do not find the same layers of Qwen3Next.*: of layers 0 there is one of"):
        hook_points_named(build("qwen3-next"), *names)


def test_a_model_that_has_no_such_places_is_refused():
    with pytest.raises(HookPointError, match="mlp_in"):
        hook_points_named(build("mamba"), "mlp_in.*", "mlp_out.*")
