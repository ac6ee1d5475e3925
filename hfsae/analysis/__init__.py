"""What features mean: where they fire, on what most, with which others, and what they say to the vocabulary.

    collection = collect_features(sae, model, tokenizer, load_text("data.jsonl"))
    collection.of(17).top[0].token_ids
    table = feature_activations(sae, model, tokenizer, ["def f(self):"], [17])

Everything here works on any SAE and any causal LM that it fits.
"""

from hfsae.analysis.activations import ReadPiece, feature_activations, read_pieces
from hfsae.analysis.collect import collect_features, find_max_activating_examples
from hfsae.analysis.collection import FeatureCollection
from hfsae.analysis.records import About, Example, Feature, Neighbour, Partner, TokenEffect
from hfsae.analysis.token_text import TokenTexts
from hfsae.analysis.weights import LogitEffects, Neighbours, logit_effects, neighbours

__all__ = [
    "About",
    "Example",
    "Feature",
    "FeatureCollection",
    "LogitEffects",
    "Neighbour",
    "Neighbours",
    "Partner",
    "ReadPiece",
    "TokenEffect",
    "TokenTexts",
    "collect_features",
    "feature_activations",
    "find_max_activating_examples",
    "logit_effects",
    "neighbours",
    "read_pieces",
]
