import itertools
from pathlib import Path

import pytest
import torch

from hfsae import SAE, MatchingPursuitSAEConfig, TopKSAEConfig
from hfsae.cli import main
from hfsae.scores import match_features
from hfsae.scores.matching import assigned, starts_are_known
from hfsae.scores.score_saved import match_alike
from tests.circuits.tiny import cross_layer


def an_sae(seed: int, n_features: int = 64, d_in: int = 16, **training) -> SAE:
    torch.manual_seed(seed)
    config = TopKSAEConfig(d_in=d_in, n_features=n_features, k=4)
    config.training = {"seed": seed, **training}
    return SAE.from_config(config)


def permuted(sae: SAE, order: torch.Tensor, **training) -> SAE:
    other = an_sae(99, sae.config.n_features, sae.config.d_in, **training)
    state = sae.state_dict()
    rows = ("encoder.weight", "encoder.bias", "W_dec")
    other.load_state_dict({name: value[order] if name in rows else value for name, value in state.items()})
    return other


def test_a_permuted_copy_matches_with_1_and_the_permutation_is_found():
    sae, order = an_sae(0), torch.randperm(64, generator=torch.Generator().manual_seed(3))
    found = match_features(sae, permuted(sae, order))
    assert torch.equal(found.first, torch.arange(64)) and torch.equal(order[found.second], found.first)
    assert found.mean_cosine.value == pytest.approx(1) and found.mean_cosine.low == pytest.approx(1)
    assert found.shared.value == found.shared_by_both.value == found.stability.value == 1


def test_a_smaller_scale_of_input_and_a_longer_row_change_no_cosine():
    sae = an_sae(0)
    other = permuted(sae, torch.arange(64))
    with torch.no_grad():
        other.input_scale.mul_(3)
        other.W_dec.mul_(2)
        other.encoder.weight.mul_(5)
    assert match_features(sae, other).shared_by_both.value == 1


def test_random_ones_match_as_chance_does():
    found = match_features(*(an_sae(seed, n_features=512, d_in=32) for seed in (0, 1)))
    assert found.mean_cosine.value == pytest.approx(found.chance, abs=0.01)
    assert found.shared.value < 0.2 and found.one_start is None
    assert found.stability == found.shared


def test_half_of_the_features_shared_are_half_found():
    a, b = an_sae(0, n_features=512, d_in=64), an_sae(1, n_features=512, d_in=64)
    with torch.no_grad():
        b.W_dec[256:] = a.W_dec[:256]
        b.encoder.weight[300:] = a.encoder.weight[44:256]
    found = match_features(a, b)
    assert found.shared.value == pytest.approx(0.5) and found.shared_by_both.value == pytest.approx(212 / 512)
    assert found.shared.low < 0.5 < found.shared.high


def test_the_assignment_is_the_best_of_all_there_are():
    similarity = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    rows, columns = assigned(similarity)
    best = max(
        sum(similarity[row, column] for row, column in enumerate(way)) for way in itertools.permutations(range(6), 5)
    )
    assert float(similarity[rows, columns].sum()) == pytest.approx(float(best))


def test_features_of_a_wider_sae_stay_alone():
    a, b = an_sae(0, n_features=64), an_sae(1, n_features=24)
    assert len(match_features(a, b).first) == len(match_features(b, a).first) == 24
    assert match_features(a, b).mean_cosine.value == pytest.approx(match_features(b, a).mean_cosine.value)


def test_saes_of_two_places_are_matched_and_tell_of_no_stability():
    def of(seed: int, **fields) -> SAE:
        torch.manual_seed(seed)
        return SAE.from_config(TopKSAEConfig(d_in=16, n_features=64, k=4, **fields))

    here = of(0, hook_point="layers.1", base_model="hub/lm")
    found = match_features(here, of(1, hook_point="layers.2", base_model="hub/lm"))
    assert found.two_places == "the one reads layers.1 of hub/lm, the other reads layers.2 of hub/lm"
    with pytest.raises(ValueError, match="do not tell of stability: the one reads layers.1 of hub/lm"):
        _ = found.stability
    assert match_features(here, of(1, hook_point="layers.1", base_model="hub/other")).two_places
    assert match_features(here, of(1, hook_point="layers.1", target_hook_point="layers.3")).two_places
    by_name = of(1, hook_point="resid_post.1", base_model="hub/lm")
    by_path = of(2, hook_point="layers.1", base_model="hub/lm", training={"portable_name": "resid_post.1"})
    assert match_features(here, by_name).two_places  # nothing says that they are one place
    assert match_features(by_path, by_name).objection is None
    for alike in (of(1, hook_point="layers.1", base_model="/moved/lm"), of(1)):
        assert match_features(here, alike).objection is None


def test_runs_from_one_start_do_not_count():
    a, b = an_sae(0), an_sae(1)
    b.config.training = {"seed": 0}
    found = match_features(a, b)
    assert found.one_start == "both drew their first weights with seed 0"
    with pytest.raises(ValueError, match="with seed 0. Train one of them with another seed"):
        _ = found.stability
    assert match_features(a, a).one_start == "their weights are the same"
    for start in ({"folder": "x"}, {"init_from": "x"}):
        a.config.training, b.config.training = {"seed": 0, **start}, {"seed": 1, "init_from": "x"}
        assert (
            match_features(a, b).one_start
            == match_features(b, a).one_start
            == ("they were trained on from one start, x")
        )
    a.config.training, b.config.training = {"seed": 0}, {"seed": 0, "init_from": "x"}
    assert match_features(a, b).one_start is None and starts_are_known(a, b)
    b.config.training = None
    assert match_features(a, b).one_start is None and not starts_are_known(a, b)


def test_one_seed_of_two_widths_or_two_architectures_is_one_start():
    def of(config_class: type, n_features: int) -> SAE:
        torch.manual_seed(0)
        return SAE.from_config(config_class(d_in=16, n_features=n_features, k=4, training={"seed": 0}))

    narrow = of(TopKSAEConfig, 128)
    for other in (of(TopKSAEConfig, 256), of(MatchingPursuitSAEConfig, 512)):
        found = match_features(narrow, other)
        assert found.cosines.min() > 0.9999, "they share their first rows"
        assert found.one_start == "both drew their first weights with seed 0"


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (MatchingPursuitSAEConfig(d_in=16, n_features=64, k=4), "topk and matching_pursuit"),
        (TopKSAEConfig(d_in=16, n_features=32, k=4), "64 features and 32 features"),
        (TopKSAEConfig(d_in=16, n_features=64, k=8), "k = 4 and k = 8"),
    ],
)
def test_two_recipes_tell_of_no_stability(other, what):
    torch.manual_seed(1)
    other.training = {"seed": 1}
    found = match_features(an_sae(0), SAE.from_config(other))
    assert found.one_start is None and found.objection == f"they differ in more than their seed: {what}"
    with pytest.raises(ValueError, match="Match runs of one recipe"):
        _ = found.stability


def test_arguments_that_one_run_does_not_record_are_no_difference():
    given = {"arguments": {"learning_rate": 0.001}}
    assert match_features(an_sae(0), an_sae(1, **given)).two_recipes is None
    found = match_features(an_sae(0, arguments={}), an_sae(1, **given)).two_recipes
    assert found == "they differ in more than their seed: learning_rate by default and learning_rate = 0.001"


def test_saes_of_other_widths_are_refused():
    with pytest.raises(ValueError, match="of activations of width 16, the other of 8"):
        match_features(an_sae(0), an_sae(1, d_in=8))


def test_cross_layer_transcoders_are_refused_and_several_of_them_are_scored():
    a = cross_layer("gpt2").float()
    with pytest.raises(ValueError, match="a decoder row for each layer that it writes at"):
        match_features(a, a)
    assert not match_alike({"a": a, "b": a})


def test_pairs_that_cannot_be_matched_are_left_out_with_a_sentence():
    def transcoder(d_in: int) -> SAE:
        return SAE.from_config(
            TopKSAEConfig(
                d_in=d_in, d_out=16, n_features=8, k=2, hook_point="a", target_hook_point="b", subtract_b_dec=False
            )
        )

    told: list[str] = []
    assert not match_alike({"a": transcoder(16), "b": transcoder(8)}, told.append)
    assert len(told) == 1 and told[0].startswith("a and b are not matched: the one SAE is of activations of width 16")


def test_weights_that_are_no_numbers_and_no_draws_are_refused():
    a, b = an_sae(0), an_sae(1)
    with pytest.raises(ValueError, match="n_draws must be positive, got 0"):
        match_features(a, b, n_draws=0)
    with torch.no_grad():
        b.W_dec[3] = torch.nan
    with pytest.raises(ValueError, match="weights of the second SAE are NaN or infinite"):
        match_features(a, b)


def test_the_command_prints_and_writes(tmp_path: Path, capsys):
    for seed in (0, 1):
        an_sae(seed).save_pretrained(tmp_path / str(seed))
    assert main(["match", str(tmp_path / "0"), str(tmp_path / "1"), "--json_file", str(tmp_path / "m.json")]) == 0
    printed = capsys.readouterr().out
    assert "64 pairs of features" in printed and "\nstability " in printed
    assert (tmp_path / "m.json").read_text().count('"one_start": null') == 1
    assert main(["match", str(tmp_path / "0"), str(tmp_path / "0")]) == 0
    assert "does not count as stability: their weights are the same" in capsys.readouterr().out


def test_what_is_no_sae_is_refused():
    sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=16, k=2))
    with pytest.raises(TypeError, match="is a str, no SAE: load it with SAE.from_pretrained"):
        match_features(sae, "runs/tiny")  # type: ignore[arg-type]
