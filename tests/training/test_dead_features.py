import pytest
import torch

from hfsae.training.dead_features import resample
from tests.training.tiny import ARCHITECTURES, BATCH, make_learner, make_sae, sparse_rows

N = 5


class Resampled:
    """A learner after some steps, before and after some of its features were resampled.

    Args:
        architecture: The SAE's.
        features: What is taken for dead.
        rows: The tokens to draw from.
        options: Of the SAE's config.
    """

    def __init__(self, architecture, features=(3, 7, 20), rows=None, **options):
        self.rows = sparse_rows(64, seed=9) if rows is None else rows
        self.learner = make_learner(make_sae(architecture, **options), learning_rate=0.05, revival="none")
        for step in range(3):
            self.learner.step([sparse_rows(BATCH, seed=step)], step)
        self.sae, self.adam = self.learner.sae, self.learner.optimiser
        self.error = self.sae.scaled_reconstruction(self.sae.scaled(self.rows)) - self.sae.scaled(self.rows)
        self.places = {name: parameter.data_ptr() for name, parameter in self.sae.named_parameters()}
        self.before = {name: tensor.detach().clone() for name, tensor in self.sae.named_parameters()}
        self.moments_before = self.moments()
        self.dead = torch.zeros(48, dtype=torch.bool)
        self.dead[list(features)] = True
        self.revived = resample(self.sae, self.adam, self.rows, self.dead, self.learner.starts, seed=1)
        self.after = dict(self.sae.named_parameters())

    def moments(self):
        names = {id(parameter): name for name, parameter in self.sae.named_parameters()}
        return {
            (names[id(parameter)], kind): moment.clone()
            for parameter, state in self.adam.state.items()
            for kind, moment in state.items()
        }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resampling_writes_into_the_parameters_themselves_and_leaves_living_features_alone(architecture):
    run = Resampled(architecture)
    assert run.revived.tolist() == [3, 7, 20]
    for name, parameter in run.after.items():
        assert parameter.data_ptr() == run.places[name]
        if parameter.shape[0] == 48:
            assert torch.equal(parameter[~run.dead], run.before[name][~run.dead])
        else:
            assert torch.equal(parameter, run.before[name])
    assert not torch.equal(run.sae.W_dec[run.dead], run.before["W_dec"][run.dead])
    for name in run.before.keys() & {"encoder.weight"}:  # one whose decoder rows read has none
        assert not torch.equal(run.sae.encoder.weight[run.dead], run.before[name][run.dead])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_revived_rows_have_the_documented_norms_and_one_direction(architecture):
    run = Resampled(architecture)
    written, read = run.sae.W_dec[run.dead], run.sae.encoder.weight[run.dead]
    free = architecture == "standard"
    living_norm = run.before["W_dec"][~run.dead].norm(dim=1).mean() if free else torch.tensor(1.0)
    assert torch.allclose(written.norm(dim=1), living_norm)
    if "encoder.weight" in run.before:
        living_norm = 0.2 * run.before["encoder.weight"][~run.dead].norm(dim=1).mean()
    assert torch.allclose(read.norm(dim=1), living_norm)
    assert torch.allclose(torch.cosine_similarity(written, read), torch.ones(3))


def test_revived_rows_point_at_centred_tokens_each_at_another():
    run = Resampled("topk")
    tokens = torch.nn.functional.normalize(run.sae.scaled(run.rows) - run.sae.b_dec, dim=1)
    nearest = (run.sae.W_dec[run.dead] @ tokens.T).max(dim=1)
    assert torch.allclose(nearest.values, torch.ones(3), atol=1e-5)
    assert len(set(nearest.indices.tolist())) == 3


def test_tokens_are_drawn_by_the_fourth_power_of_their_error():
    weak, strong = sparse_rows(63, seed=9), sparse_rows(1, seed=10) + 20  # 20 off centre: far from everything
    run = Resampled("topk", features=[5], rows=torch.cat([weak, strong]))
    share = run.error.norm(dim=1).pow(4)
    assert share[-1] > 0.99 * share.sum()
    direction = torch.nn.functional.normalize(run.sae.scaled(strong) - run.sae.b_dec, dim=1)
    assert torch.allclose(run.sae.W_dec[5], direction[0], atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adam_forgets_the_revived_features_and_no_others(architecture):
    run = Resampled(architecture)
    for (name, kind), moment in run.moments().items():
        before = run.moments_before[name, kind]
        if kind != "step" and moment.shape[0] == 48:
            assert not moment[run.dead].any()
            assert torch.equal(moment[~run.dead], before[~run.dead]) and before[~run.dead].any()
        else:
            assert torch.equal(moment, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_biases_thresholds_and_gates_go_back_to_their_start(architecture):
    run = Resampled(architecture)
    vectors = {name for name, parameter in run.after.items() if parameter.shape == (48,)}
    expected = {
        "jumprelu": {"encoder.bias", "threshold"},
        "gated": {"encoder.bias", "magnitude_bias", "magnitude_log_scale"},
        "matching_pursuit": set(),
    }.get(architecture, {"encoder.bias"})
    assert vectors == expected
    fresh = dict(make_sae(architecture).named_parameters())
    for name in vectors:
        start = fresh[name].mean().expand(3)
        assert torch.allclose(run.after[name][run.dead], start)
        assert not torch.allclose(run.before[name][run.dead], start)


def test_the_centre_stays_even_where_it_has_as_many_entries_as_there_are_features():
    run = Resampled("topk", features=[2, 5], rows=sparse_rows(64, 48, seed=9)[:, :16])
    assert "b_dec" not in run.learner.starts
    square = make_learner(make_sae("topk", n_features=16))
    assert set(square.starts) == {"encoder.bias"}


def test_where_more_features_are_dead_than_there_are_tokens_the_first_of_them_are_revived():
    run = Resampled("topk", features=range(10), rows=sparse_rows(4, seed=9))
    assert run.revived.tolist() == [0, 1, 2, 3]
    assert torch.equal(run.sae.W_dec[4:], run.before["W_dec"][4:])


def test_all_features_can_be_dead():
    run = Resampled("standard", features=range(48), rows=sparse_rows(100, seed=9))
    assert len(run.revived) == 48
    assert run.sae.W_dec.isfinite().all() and run.sae.encoder.weight.isfinite().all()


def test_tokens_without_error_revive_nothing():
    sae = make_sae("topk")
    perfect = sae(sparse_rows(1)).reconstruction.detach()
    sae.W_dec.data.zero_()
    sae.b_dec.data.copy_(sae.scaled(perfect)[0])
    dead = torch.zeros(48, dtype=torch.bool)
    dead[3] = True
    optimiser = torch.optim.Adam(sae.parameters())
    revived = resample(sae, optimiser, perfect, dead, {"encoder.bias": 0.0}, seed=0)
    assert revived.tolist() == [] and not sae.W_dec.any()


def test_equal_seeds_draw_equal_tokens_and_others_do_not():
    def draw(seed):
        sae = make_sae("topk")
        resample(sae, torch.optim.Adam(sae.parameters()), sparse_rows(64, seed=9), torch.arange(48) < 5, {}, seed)
        return sae.W_dec.detach()

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
