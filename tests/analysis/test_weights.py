import copy

import pytest
import torch
import torch.nn.functional as F

from hfsae import SAE, TopKCrossLayerTranscoderSAEConfig, TopKSAEConfig
from hfsae.analysis import collect_features, logit_effects, neighbours
from hfsae.analysis.weights import _histograms, has_logit_effects
from tests.data.tiny import pythia_like
from tests.hooks.families import build
from tests.hooks.model_types import tiny_model
from tests.hooks.witness import count_hooks


def sae_at(hook_point: str, d_in: int = 16, n_features: int = 30) -> SAE:
    torch.manual_seed(0)
    sae = SAE.from_config(TopKSAEConfig(d_in=d_in, n_features=n_features, k=4, hook_point=hook_point)).eval()
    sae.input_scale.fill_(3.0)
    return sae


def through_norm_and_head(model, directions: torch.Tensor) -> torch.Tensor:
    """For models with a final norm and a head that is a matrix: gain · centred direction · unembedding."""
    unit = directions / directions.square().mean(1, keepdim=True).sqrt()
    if model.config.model_type == "gpt2":
        centred = unit - unit.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * model.transformer.ln_f.weight
    else:
        normed = unit / (1 + model.config.rms_norm_eps) ** 0.5 * model.model.norm.weight
    # Granite divides its logits; direct_logit_attribution of transformer-lens 4.3.0 does not (findings/).
    return normed @ model.lm_head.weight.T / getattr(model.config, "logits_scaling", 1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "granite"])
@torch.no_grad()
def test_effects_are_the_directions_through_the_final_norm_and_the_unembedding(family):
    model = build(family)
    if family == "granite":
        model.config.logits_scaling = 8.0
    before = count_hooks(model)
    sae = sae_at("resid_post.0")
    effects = logit_effects(sae, model, k=5)
    expected = through_norm_and_head(model, sae.W_dec / 3.0)
    up, down = expected.topk(5), expected.topk(5, largest=False)
    assert torch.equal(effects.promoted.long(), up.indices) and torch.equal(effects.suppressed.long(), down.indices)
    torch.testing.assert_close(effects.promoted_by, up.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(effects.suppressed_by, down.values, rtol=1e-4, atol=1e-5)
    assert effects.counts is not None and effects.range is not None
    for row, counts, (low, high) in zip(expected, effects.counts, effects.range.tolist(), strict=True):
        width = (high - low) / len(counts)
        bins = ((row - low) / width).floor().clamp(0, len(counts) - 1).long()
        # A value on the edge of two bins may be counted in either.
        assert (torch.bincount(bins, minlength=len(counts)) - counts).abs().sum() <= 2
        assert (low, high) == pytest.approx((float(row.min()), float(row.max())), rel=1e-4, abs=1e-5)
    assert count_hooks(model) == before


def test_histograms_of_effects_are_those_of_torch_row_by_row():
    effects = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    effects[1] = 2.5
    effects[2, :7] = torch.nan
    effects[3, 0], effects[3, 1] = torch.inf, -torch.inf
    effects[4] = torch.nan
    for some in (effects, effects[:2]):
        counts, ranges = _histograms(some)
        assert counts.dtype == torch.int32 and ranges.dtype == torch.float32
        for row, found, ends in zip(some, counts, ranges, strict=True):
            finite = row[row.isfinite()]
            expected = torch.histc(finite, counts.shape[1]) if len(finite) else torch.zeros(counts.shape[1])
            assert torch.equal(found.float(), expected)
            assert ends.tolist() == ([finite.min(), finite.max()] if len(finite) else [0, 0])


@pytest.mark.parametrize("family", ["gemma2", "gpt-neox", "opt", "bloom", "falcon", "mamba"])
def test_every_family_has_effects(family):
    effects = logit_effects(sae_at("resid_post.0"), build(family), [3, 7], k=5)
    assert effects.promoted.shape == (2, 5) and (effects.promoted_by > effects.suppressed_by).all()


@torch.no_grad()
def test_a_feature_before_the_matrix_of_a_branch_goes_through_it():
    model = build("llama")
    sae = sae_at("mlp_act.0", d_in=24)
    expected = through_norm_and_head(model, sae.W_dec @ model.model.layers[0].mlp.down_proj.weight.T)
    torch.testing.assert_close(logit_effects(sae, model).promoted_by, expected.topk(10).values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["resid_post.0", "mlp_act.0"])
def test_an_adapter_around_the_model_has_effects_too(place):
    peft = pytest.importorskip("peft")
    model = build("llama")
    width = {"resid_post.0": model.config.hidden_size, "mlp_act.0": model.config.intermediate_size}[place]
    sae = SAE.from_config(TopKSAEConfig(d_in=width, n_features=16, k=2, hook_point=place))
    plain = logit_effects(sae, model, k=3)
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    assert has_logit_effects(sae, adapted)
    effects = logit_effects(sae, adapted, k=3)
    merged = logit_effects(sae, copy.deepcopy(adapted).merge_and_unload(), k=3)
    torch.testing.assert_close(effects.promoted_by, merged.promoted_by, rtol=1e-4, atol=1e-5)
    assert torch.equal(effects.promoted, plain.promoted) == (place == "resid_post.0")


@torch.no_grad()
def test_the_last_block_that_text_comes_to_is_where_the_stream_leaves():
    """The last block of this model attends to images alone, and text passes it by."""
    model = tiny_model("mllama")
    sae = sae_at("resid_post.0", d_in=model.config.hidden_size)
    expected = through_norm_and_head(model, sae.W_dec / 3.0)
    torch.testing.assert_close(logit_effects(sae, model).promoted_by, expected.topk(10).values, rtol=1e-4, atol=1e-5)


def test_virtual_tokens_of_an_adapter_change_no_effects():
    peft = pytest.importorskip("peft")
    sae, plain = sae_at("resid_post.0"), build("llama")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = peft.get_peft_model(copy.deepcopy(plain), config)
    for found, expected in zip(logit_effects(sae, adapted), logit_effects(sae, plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["gemma3n_text", "deepseek_v4"])
def test_one_of_several_streams_reaches_no_logits_by_itself(model_type):
    """The blocks mix the streams, so that nothing passes them as it is; a collection goes without effects."""
    model = tiny_model(model_type)
    sae = sae_at("resid_post.1[0]", d_in=model.config.hidden_size)
    assert not has_logit_effects(sae, model)
    with pytest.raises(ValueError, match="no direct effect on logits"):
        logit_effects(sae, model)
    found = collect_features(sae, model, pythia_like(), ["w1 w2 w3 w4", "w5 w6 w7"], disable_tqdm=True)
    assert found.densities.sum() > 0 and not found.of(int(found.densities.argmax())).promoted


def test_what_does_not_go_into_the_stream_is_refused():
    with pytest.raises(ValueError, match="no direct effect on logits"):
        logit_effects(sae_at("mlp_in.0"), build("llama"))


def test_features_that_the_sae_does_not_have_are_refused():
    for features in ([30], [-1], []):
        with pytest.raises(ValueError, match="expected indices from 0 to 29"):
            neighbours(sae_at("resid_post.0"), features)
    with pytest.raises(ValueError, match=r"features \['5'\] are texts: expected indices"):
        neighbours(sae_at("resid_post.0"), ["5"])
    with pytest.raises(ValueError, match="k is -1: expected 0 neighbours or more"):
        neighbours(sae_at("resid_post.0"), k=-1)


@pytest.mark.parametrize("n_features", [30, 707])
@torch.no_grad()
def test_neighbours_are_those_of_largest_cosine_without_the_feature_itself(n_features):
    sae = sae_at("resid_post.0", n_features=n_features)
    sae.encoder.weight.normal_()
    found = neighbours(sae, [4, 9], k=3)
    for ids, cosines, rows in (
        (found.decoder, found.decoder_cosines, sae.W_dec),
        (found.encoder, found.encoder_cosines, sae.encoder.weight),
    ):
        for row, feature in enumerate((4, 9)):
            all_cosines = F.cosine_similarity(rows, rows[feature], dim=1)
            all_cosines[feature] = -2
            best = all_cosines.topk(3)
            assert ids[row].tolist() == best.indices.tolist()
            torch.testing.assert_close(cosines[row], best.values)


def test_neighbours_in_a_cross_layer_transcoder_are_near_on_all_layers_together():
    torch.manual_seed(0)
    layers, n, d = 3, 8, 4
    names = {"source_names": ["a", "b", "c"], "source_widths": [d] * layers, "d_out": layers * d}
    for tied in (False, True):
        sae = SAE.from_config(
            TopKCrossLayerTranscoderSAEConfig(**names, n_features=layers * n, k=2, tied_decoder=tied)
        )
        if tied:
            for scale in sae.decoder_scale:
                torch.nn.init.normal_(scale)
        reads, writes = torch.zeros(layers * n, layers * d), torch.zeros(layers * n, layers * d)
        for source in range(layers):
            own = slice(source * n, source * n + n)
            reads[own, source * d : source * d + d] = sae.encoder.weight[own].detach()
            for target in range(source, layers):
                rows = sae.rows_between(source, target).detach()
                writes[own, target * d : target * d + d] = rows
        found = neighbours(sae, [20, 1, 9], k=layers * n - 1)
        kinds = (
            (writes, found.decoder, found.decoder_cosines),
            (reads, found.encoder, found.encoder_cosines),
        )
        for rows, ids, cosines in kinds:
            for feature, near, values in zip([20, 1, 9], ids.long(), cosines, strict=True):
                expected = F.cosine_similarity(rows[feature][None], rows[near])
                torch.testing.assert_close(values, expected)
                assert sorted(near.tolist()) == [other for other in range(layers * n) if other != feature]
                assert (values.diff() <= 0).all()
