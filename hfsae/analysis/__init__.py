"""What features mean and what they do: where they fire, what they say to the vocabulary, the model with them changed.

    collection = collect_features(sae, model, tokenizer, load_text("data.jsonl"))
    collection.of(17).top[0].token_ids
    table = feature_activations(sae, model, tokenizer, ["def f(self):"], [17])
    with steer(model, sae, {17: 8.0}), ablate(model, sae, [42]):
        model.generate(...)

Everything here works on any SAE and any causal LM that it fits.
"""

from hfsae.analysis.activations import ReadSequence, feature_activations, read_sequences
from hfsae.analysis.collect import collect_features, find_max_activating_examples
from hfsae.analysis.collection import FeatureCollection
from hfsae.analysis.delphi import export_delphi
from hfsae.analysis.effects import FeatureEffect, FeatureEffects, feature_effects
from hfsae.analysis.feature_map import FeatureMap, feature_map
from hfsae.analysis.feature_pages import export_circuit_tracer
from hfsae.analysis.feature_types import About, Example, Feature, Neighbour, Partner, TokenEffect
from hfsae.analysis.interventions import ablate, steer
from hfsae.analysis.neuronpedia import export_neuronpedia
from hfsae.analysis.never_trained import untrained_tokens
from hfsae.analysis.token_text import TokenTexts
from hfsae.analysis.weights import LogitEffects, Neighbours, logit_effects, neighbours

__all__ = [
    "About",
    "Example",
    "Feature",
    "FeatureCollection",
    "FeatureEffect",
    "FeatureEffects",
    "FeatureMap",
    "LogitEffects",
    "Neighbour",
    "Neighbours",
    "Partner",
    "ReadSequence",
    "TokenEffect",
    "TokenTexts",
    "ablate",
    "collect_features",
    "export_circuit_tracer",
    "export_delphi",
    "export_neuronpedia",
    "feature_activations",
    "feature_effects",
    "feature_map",
    "find_max_activating_examples",
    "logit_effects",
    "neighbours",
    "read_sequences",
    "steer",
    "untrained_tokens",
]
