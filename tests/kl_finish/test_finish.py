"""The loss of the KL finish and its gradients, against a splice written out by hand; what cannot have one."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from hfsae import SAE, TopKSAEConfig
from hfsae.autoencoder.objective import squared_error
from hfsae.functional.reference import decode
from hfsae.in_model import SAEHookPoints
from hfsae.inputs.base_model import BaseModel
from hfsae.inputs.streams import token_blocks
from hfsae.kl_finish.finish import KLFinish, kl_steps, refuse_kl_finish
from tests.architectures.variants import OF_ONE_SOURCE, VARIANTS, scramble, state, weights_of
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments, sparse_rows, text, trainer

D_IN, BATCH = 16, 32
AFTER_FIRST = "transformer.h.0.output"


def sharp_model():
    """A random model in float64 whose predictions differ from token to token."""
    model = language_model().double()
    model.transformer.wte.weight.data *= 20
    return model.eval()


def opened(model, hook_points, **options) -> KLFinish:
    """A finish of a whole run, open at the beginning of the text."""
    args = arguments("unused", kl_tokens=1, train_batch_tokens=BATCH, shuffle_window_tokens=0, **options)
    base = BaseModel(model, pythia_like(), None)
    blocks = token_blocks(args, text(), base, repeat=True)
    finish = KLFinish(args, base, blocks, hook_points, (0, 1), mean=lambda tensor: tensor)
    finish.open_at(blocks.state_dict())
    return finish


def sequences() -> tuple[Tensor, Tensor]:
    """The ids of the same text, and which of its tokens count: all but BOS, position 0 and what is over 32."""
    args = arguments("unused")
    batch = next(token_blocks(args, text(), BaseModel(sharp_model(), pythia_like(), None), repeat=True))
    number = batch.keep.flatten().cumsum(0).view_as(batch.keep)
    keep = batch.keep & (number <= BATCH)
    return batch.input_ids, keep


def nats_a_token(clean: Tensor, spliced: Tensor, keep: Tensor) -> Tensor:
    """KL(clean ‖ spliced) where a token counts and has a successor, over the tokens that count."""
    counts = keep[:, :-1]
    p, q = (F.log_softmax(logits, -1)[:, :-1][counts] for logits in (clean, spliced))
    return (p.exp() * (p - q)).sum() / keep.sum()


def equal_pull(error: Tensor, kl: Tensor, written: Tensor) -> Tensor:
    """The weight with which the divergence's gradient with respect to what is written is as long as the error's."""
    lengths = [torch.autograd.grad(term, written, retain_graph=True)[0].norm() for term in (error, kl)]
    return lengths[0] / lengths[1]


def gradients(sae: SAE, loss: Tensor) -> dict[str, Tensor]:
    """By name; 0 where the loss does not depend on a parameter."""
    names, parameters = zip(*sae.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    pairs = zip(names, parameters, found, strict=True)
    return {name: torch.zeros_like(p) if grad is None else grad for name, p, grad in pairs}


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, expected in theirs.items():
        close = 1e-9 if expected.dtype == torch.float64 else 2e-6  # thresholds are float32 whatever the others are
        assert torch.allclose(ours[name], expected, rtol=close, atol=close), name


@pytest.mark.parametrize("pieces", [4, 2], ids=["one piece", "several pieces"])
@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].architecture in OF_ONE_SOURCE])
def test_loss_and_gradients_are_those_of_a_splice_by_hand(name, pieces):
    model, sae = sharp_model(), VARIANTS[name].make(d_in=D_IN, n_features=48)
    finish = opened(model, {"": SAEHookPoints(AFTER_FIRST)}, lm_batch_sequences=pieces)
    rows = finish.next_batches()[0][AFTER_FIRST]
    (term,) = finish.terms({"": sae}, {"": state()})[""]
    output = sae(rows, state=state(downstream=term))
    ours = gradients(sae, output.loss)

    ids, keep = sequences()
    kept: list[Tensor] = []
    block = model.transformer.h[0]
    with torch.no_grad(), block.register_forward_hook(lambda _, __, out: kept.append(_first(out))):
        clean = model(ids).logits
    x = kept[0][keep]
    torch.testing.assert_close(rows, x, rtol=1e-12, atol=1e-12)
    scaled = x * sae.input_scale
    z, loss = VARIANTS[name].reference(sae, scaled)
    made = decode(z, weights_of(sae))
    there = torch.masked_scatter(kept[0], keep[..., None].expand_as(kept[0]), made / sae.input_scale)
    with block.register_forward_hook(lambda _, __, out: _with_first(out, there)):
        kl = nats_a_token(clean, model(ids).logits, keep)
    alpha = equal_pull(squared_error(made, scaled), kl, made)

    assert kl > 1e-3, "a model whose predictions do not move would show nothing"
    assert term.kl == pytest.approx(kl.item(), rel=1e-9)
    assert output.losses["kl"] == pytest.approx((alpha * kl).item(), rel=1e-9)
    assert output.loss.item() == pytest.approx((loss + alpha * kl).item(), rel=1e-9)
    assert_alike(ours, gradients(sae, loss + alpha * kl))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_transcoders_of_a_set_stand_in_the_model_at_once():
    """The second one reads what the first one left, and its error reaches the first one's weights through it."""
    model = sharp_model()
    points = {str(i): SAEHookPoints(f"transformer.h.{i}.mlp.input", f"transformer.h.{i}.mlp.output") for i in (0, 1)}
    saes = {name: transcoder(seed) for seed, name in enumerate(points)}
    finish = opened(model, points)
    rows = finish.next_batches()[0]
    terms = finish.terms(saes, {name: state() for name in saes})

    ids, keep = sequences()
    seen: dict[str, Tensor] = {}
    mlps = {name: model.transformer.h[int(name)].mlp for name in saes}
    with torch.no_grad():
        hooks = [mlp.register_forward_hook(_noting(seen, name)) for name, mlp in mlps.items()]
        clean = model(ids).logits
        [hook.remove() for hook in hooks]

    def written(name: str, x: Tensor) -> Tensor:
        return by_hand(saes[name], x * saes[name].input_scale) / saes[name].output_scale

    def replaced(name: str):
        def hook(_, args, out):
            in_place[name] = written(name, args[0][keep])
            return torch.masked_scatter(out, keep[..., None].expand_as(out), in_place[name])

        return hook

    in_place: dict[str, Tensor] = {}
    hooks = [mlp.register_forward_hook(replaced(name)) for name, mlp in mlps.items()]
    kl = nats_a_token(clean, model(ids).logits, keep)
    [hook.remove() for hook in hooks]
    assert kl > 1e-3
    for name, sae in saes.items():
        (term,) = terms[name]
        x, y = seen[f"in {name}"][keep], seen[f"out {name}"][keep]
        output = sae(points[name].rows(rows), points[name].target_rows(rows), state=state(downstream=term))
        made = written(name, x)
        mse = squared_error(made * sae.output_scale, y * sae.output_scale)
        pulls = (
            torch.autograd.grad(*pair, retain_graph=True)[0].norm() for pair in ((mse, made), (kl, in_place[name]))
        )
        alpha = next(pulls) / next(pulls)
        assert term.kl == pytest.approx(kl.item(), rel=1e-9)
        assert output.loss.item() == pytest.approx((mse + alpha * kl).item(), rel=1e-9)
        assert_alike(gradients(sae, output.loss), gradients(sae, mse + alpha * kl))


def transcoder(seed: int) -> SAE:
    sizes = {"d_in": D_IN, "d_out": D_IN, "n_features": 48, "k": 5, "subtract_b_dec": False}
    sae = SAE.from_config(TopKSAEConfig(**sizes, target_hook_point="elsewhere")).double()
    scramble(sae, seed)
    return sae


def by_hand(sae: SAE, x: Tensor) -> Tensor:
    pre = x @ sae.encoder.weight.T + sae.encoder.bias
    largest = pre.topk(5, dim=1)
    return torch.zeros_like(pre).scatter(1, largest.indices, largest.values.relu()) @ sae.W_dec + sae.b_dec


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def _with_first(output, there):
    return (there, *output[1:]) if isinstance(output, tuple) else there


def _noting(seen, name):
    def hook(_, args, out):
        seen[f"in {name}"], seen[f"out {name}"] = args[0], out

    return hook


# -- over a step of several batches, and several processes -----------------------------------------------------------
@pytest.mark.parametrize("weight", [1.0, 1.5])
def test_predictions_pull_as_hard_as_is_asked_over_all_batches_and_processes_of_a_step(weight):
    sae = VARIANTS["topk"].make(d_in=D_IN, n_features=48)
    told = {"gradient_accumulation_steps": 3, "kl_weight": weight}
    finish = opened(sharp_model(), {"": SAEHookPoints(AFTER_FIRST)}, **told)
    asked: list[float] = []
    finish._mean = lambda tensor: asked.append(tensor.item()) or tensor / 2  # as if another process had nothing
    rows = finish.next_batches()
    terms = finish.terms({"": sae}, {"": state()})[""]
    assert len({term.kl.item() for term in terms}) == 3
    alphas = [(term.loss / term.kl).item() for term in terms]
    assert alphas == pytest.approx(alphas[:1] * 3)  # one weight
    of_error = []
    for batch in rows:
        x = batch[AFTER_FIRST]
        made = sae.training_reconstruction(x).detach().requires_grad_()
        error = squared_error(made * sae.input_scale, x * sae.input_scale)
        of_error.append(torch.autograd.grad(error, made)[0].square().sum().item())
    assert sum(term.gradient.square().sum().item() for term in terms) == pytest.approx(weight**2 * sum(of_error))
    assert len(asked) == 2  # the mean over processes of the error and of the pull


def test_what_is_no_divergence_but_rounding_weighs_next_to_nothing():
    """An SAE that gives back what it reads: the terms are 0, and no number is lost."""
    sae = SAE.from_config(TopKSAEConfig(d_in=D_IN, n_features=2 * D_IN, k=D_IN)).double()
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(D_IN), -torch.eye(D_IN)]))
        sae.encoder.weight.copy_(sae.W_dec)
        sae.encoder.bias.zero_()
        sae.b_dec.zero_()
    finish = opened(sharp_model(), {"": SAEHookPoints(AFTER_FIRST)})
    finish.next_batches()
    (term,) = finish.terms({"": sae}, {"": state()})[""]
    assert abs(term.kl) < 1e-9 and abs(term.loss) < 1e-9
    assert term.gradient.isfinite().all()


# -- how much of a run, and which runs -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kl_tokens", "processes", "steps"), [(0, 1, 0), (0.25, 1, 25), (1, 1, 100), (320, 1, 10), (320, 2, 5), (2, 1, 1)]
)
def test_a_share_of_the_run_or_a_number_of_tokens(kl_tokens, processes, steps):
    assert kl_steps(arguments("unused", steps=100, kl_tokens=kl_tokens), processes) == steps


@pytest.mark.parametrize("kl_tokens", [-1, 100_000])
def test_what_is_no_part_of_the_run_is_refused(kl_tokens):
    with pytest.raises(ValueError, match="kl_tokens"):
        arguments("unused", steps=100, kl_tokens=kl_tokens)


def test_a_weight_without_a_finish_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^kl_weight is of the last kl_tokens of a run: give kl_tokens too.$"):
        trainer(tmp_path, kl_weight=2.0).train()
    with pytest.raises(ValueError, match="kl_weight must be positive"):
        arguments("unused", kl_tokens=0.5, kl_weight=0)


def test_activations_without_their_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="an activation cache has neither"):
        refuse_kl_finish(arguments("unused", kl_tokens=1, activation_cache="x"), 1, own_activations=False)
    with pytest.raises(ValueError, match="activations of your own have neither"):
        trainer(tmp_path, kl_tokens=0.5, inputs={"activations": sparse_rows(500)}).train()


@pytest.mark.parametrize("placement", ["spread", "shard"])
def test_processes_that_do_not_have_every_sae_are_refused(placement):
    args = arguments("unused", kl_tokens=1, sae_placement=placement)
    refuse_kl_finish(args, 1, own_activations=False)
    with pytest.raises(ValueError, match="'replicate'"):
        refuse_kl_finish(args, 2, own_activations=False)


def test_a_crosscoder_is_refused_before_a_step(tmp_path):
    options = {"architecture": "crosscoder", "hook_point": "resid_post.0+resid_post.1", "kl_tokens": 0.5}
    with pytest.raises(ValueError, match="crosscoders and cross-layer transcoders"):
        trainer(tmp_path, **options).train()


def test_a_model_that_does_not_predict_the_next_token_is_refused():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=44, **sizes)).eval()
    with pytest.raises(ValueError, match="predicts next, which BertForMaskedLM does not"):
        opened(model, {"": SAEHookPoints("bert.encoder.layer.0.output")})


def test_the_cost_is_said_before_the_run(tmp_path, caplog):
    run = trainer(tmp_path, kl_tokens=0.25, hook_point="resid_post.0, resid_post.1")
    with caplog.at_level(logging.WARNING, "hfsae.kl_finish"):
        assert run.saes and run.state.global_step == 0
    (said,) = [record.getMessage() for record in caplog.records if "KL finish" in record.getMessage()]
    assert said.startswith("KL finish: the last 3 of 12 steps") and "2 times" in said and "in all" in said


def test_rows_of_ones_own_are_refused_in_it(tmp_path):
    run = trainer(tmp_path, steps=4, kl_tokens=0.5)
    rows = sparse_rows(32)
    for _ in range(2):
        run.training_step(rows)
    with pytest.raises(ValueError, match="step 2 belongs to the KL finish"):
        run.training_step(rows)
    assert run.training_step() and run.state.global_step == 3
