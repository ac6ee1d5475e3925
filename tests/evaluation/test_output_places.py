"""A crosscoder in an evaluation: figures of every source, the others left as they are, by an independent route."""

import numpy as np
import pytest
import torch

from hfsae import SAE, CrosscoderSAEConfig, evaluate_sae
from hfsae.autoencoder.initialisation import initialise
from hfsae.evaluation import evaluate_saes, report
from hfsae.evaluation.output_places import with_means
from hfsae.hub import render_card
from tests.evaluation import longhand
from tests.evaluation.tiny import WIDTH, batches, language_model, make_sae
from tests.hooks.witness import recorded, replaced

PLACES = ["transformer.h.0.output", "transformer.h.1.output"]
CALIBRATION = {
    place: torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(seed)) + 0.5
    for seed, place in enumerate(PLACES)
}


@torch.no_grad()
def rows_at_both() -> torch.Tensor:
    rows = []
    for batch in batches():
        with recorded(language_model(), PLACES) as seen:
            language_model()(batch.input_ids, attention_mask=batch.attention_mask)
        rows.append(torch.cat([seen[place][batch.keep] for place in PLACES], 1))
    return torch.cat(rows)


@pytest.fixture(scope="module")
def crosscoder() -> SAE:
    sizes = {"source_names": ["early", "late"], "source_widths": [WIDTH, WIDTH], "n_features": 80, "k": 6}
    torch.manual_seed(0)
    sae = SAE.from_config(CrosscoderSAEConfig(**sizes, hook_point="+".join(PLACES))).eval()
    return initialise(sae, rows_at_both())


@torch.no_grad()
def by_hand(sae: SAE, target: int) -> dict[str, float]:
    """All metrics of one source, from plain runs of the model over one sequence after the other."""
    model, place, columns = language_model(), PLACES[target], slice(target * WIDTH, (target + 1) * WIDTH)
    tables = {name: [] for name in ("y", "y_hat", "z")}
    logits = {name: [] for name in ("clean", "spliced", "zero", "mean")}
    sequences = []
    for batch in batches():
        for ids, mask, keep in zip(*batch, strict=True):
            ids, mask = ids[None], mask[None]
            with recorded(model, PLACES) as seen:
                logits["clean"].append(model(ids, attention_mask=mask).logits.numpy())
            x, y = torch.cat([seen[each] for each in PLACES], -1), seen[place]
            y_hat, z = sae(x).reconstruction[..., columns], sae.encode(x)
            for name, table in (("y", y), ("y_hat", y_hat), ("z", z)):
                tables[name].append(table[0, keep].numpy())
            mean = CALIBRATION[place].mean(0)
            for name, other in (("spliced", y_hat), ("zero", torch.zeros_like(y)), ("mean", mean.expand_as(y))):
                with replaced(model, place, lambda own, other=other: torch.where(keep[:, None], other, own)):  # noqa: B023
                    logits[name].append(model(ids, attention_mask=mask).logits.numpy())
            sequences.append((ids[0].numpy(), mask[0].numpy(), keep.numpy()))
    ids, mask, keep = (np.stack(parts) for parts in zip(*sequences, strict=True))
    stacked = {name: np.concatenate(parts) for name, parts in tables.items()}
    runs = {name: np.concatenate(parts) for name, parts in logits.items()}
    return {
        **longhand.reconstruction(stacked["y"], stacked["y_hat"], stacked["z"]),
        **longhand.predictions(runs, ids, mask, keep),
    }


def evaluated(sae: SAE, **options) -> dict:
    options = {"calibration": CALIBRATION, "disable_tqdm": True, **options}
    return evaluate_sae(sae, language_model(), batches(), **options)


def test_every_sources_metrics_are_what_they_are_by_hand_and_the_crosscoders_their_means(crosscoder):
    measured = evaluated(crosscoder)
    expected = {source: by_hand(crosscoder, target) for target, source in enumerate(("early", "late"))}
    for source, of_source in expected.items():
        found = {name: measured["sources"][source][name] for name in of_source}
        assert found == pytest.approx(of_source, rel=2e-4, abs=1e-5)
    means = {name: np.mean([of[name] for of in expected.values()]) for name in expected["early"]}
    assert {name: measured[name] for name in means} == pytest.approx(means, rel=2e-4, abs=1e-5)
    assert expected["early"]["loss_recovered"] != pytest.approx(expected["late"]["loss_recovered"], rel=1e-3)


def test_beside_an_ordinary_sae_both_have_the_figures_that_they_have_alone(crosscoder):
    one = make_sae(PLACES[1])
    options = {"calibration": CALIBRATION, "disable_tqdm": True}
    together = evaluate_saes({"one": one, "both": crosscoder}, language_model(), batches(), **options)
    for source, figures in evaluated(crosscoder)["sources"].items():
        assert together["both"]["sources"][source] == pytest.approx(figures)
    assert together["one"]["loss_recovered"] == pytest.approx(evaluated(one)["loss_recovered"])
    assert "sources" not in together["one"]


def test_report_and_card_show_every_source_and_say_that_there_are_no_baselines(crosscoder):
    measured = evaluated(crosscoder, baselines=True)
    assert measured["baselines"] == {} and "one place" in measured["notes"]["baselines"]
    late = measured["sources"]["late"]
    line = next(line for line in report(measured).splitlines() if line.startswith("late "))
    assert f"explained variance {late['explained_variance']:.3f}" in line
    crosscoder.config.metrics = measured
    try:
        card = render_card(crosscoder).text
    finally:
        crosscoder.config.metrics = None
    row = next(line for line in card.splitlines() if line.startswith("| `late` |"))
    assert f"{late['loss_recovered']:.3f}"[:4] in row and "A crosscoder has no baselines" in card


def test_notes_say_of_which_sources_they_are():
    figures = {
        "early": {
            "l0": 4.0,
            "loss_recovered": None,
            "kl": 1.0,
            "notes": {"loss_recovered": "CE zero is not above it"},
        },
        "late": {"l0": 4.0, "loss_recovered": None, "kl": None, "notes": {"loss_recovered": "no CE", "kl": "no CE"}},
    }
    together = with_means(figures)
    assert together["notes"] == {
        "loss_recovered": "early: CE zero is not above it; late: no CE",
        "kl": "late: no CE",
    }
    assert (together["l0"], together["loss_recovered"], together["kl"]) == (4.0, None, None)
    figures["early"] = figures["late"]
    assert with_means(figures)["notes"] == {"loss_recovered": "no CE", "kl": "no CE"}
