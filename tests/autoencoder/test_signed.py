"""What takes features for positive refuses those that may be negative, and reads the SAE that computes the same."""

import pytest
import torch

from hfsae import SAE, AbsTopKSAEConfig
from hfsae.analysis import collect_features, read_sequences
from hfsae.analysis.report_features import report_features
from hfsae.evaluation import evaluate_sae
from hfsae.interop import SAEBenchView
from hfsae.scores import PlantedDictionary, find_planted, match_features
from hfsae.scores.readings import LabelledReader
from tests.analysis.tiny import setting, texts


@pytest.fixture(scope="module")
def signed():
    """An SAE with negative features, its language model and tokenizer."""
    sae, model, tokenizer = setting()
    config = AbsTopKSAEConfig(d_in=sae.config.d_in, n_features=20, k=4, hook_point=sae.config.hook_point)
    torch.manual_seed(0)
    return SAE.from_config(config), model, tokenizer


def test_whoever_takes_features_for_positive_refuses(signed):
    sae, model, tokenizer = signed
    planted = PlantedDictionary.plant(sae.config.d_in, 64, seed=0)
    for refusing in (
        lambda: collect_features(*signed, texts()),
        lambda: next(read_sequences(*signed, texts())),
        lambda: LabelledReader(*signed),
        lambda: find_planted(sae, planted),
        lambda: match_features(sae, sae),
        lambda: SAEBenchView(sae),
    ):
        with pytest.raises(ValueError, match=r"takes features for positive, .* AbsTopKSAE need .* sae.by_sign"):
            refusing()
    assert report_features(*signed, texts(), disable_tqdm=True) == []


def test_by_sign_is_read_as_any_other(signed):
    sae, model, tokenizer = signed
    pairs = sae.by_sign()
    found = collect_features(pairs, model, tokenizer, texts(), disable_tqdm=True)
    assert (found.statistics.tokens_firing.view(2, 20).sum(1) > 0).all() and (found.statistics.maxima >= 0).all()
    assert match_features(pairs, pairs).mean_cosine.value == pytest.approx(1.0)
    assert report_features(pairs, model, tokenizer, texts(), disable_tqdm=True)


def test_an_evaluation_counts_negative_features_too(signed):
    sae, model, tokenizer = signed
    both = sae, sae.by_sign()
    metrics, of_pairs = (evaluate_sae(one, model, texts(), tokenizer, disable_tqdm=True) for one in both)
    assert metrics["l0"] == of_pairs["l0"] == 4
    for name in ("explained_variance", "loss_recovered"):
        assert metrics[name] == pytest.approx(of_pairs[name], abs=1e-4)
