"""Scores of features: how well they tell concepts, what absorbs them, and whether another run finds them again.

scores = score(sae, model, tokenizer, LabelledText(train, held_out))
scores.tokens.mean_f1("features", 1)
match_features(sae, sae_of_another_seed).stability
"""

from hfsae.scores.absorption import Absorption, ConceptAbsorption, absorption
from hfsae.scores.concepts import PYTHON_CONCEPTS, FirstLetters, PatternLabels, TokenLabels, read_concepts
from hfsae.scores.document_sets import DocumentSet, LabelledDocument, labelled_dataset, make_set
from hfsae.scores.labelled_rows import LabelledRows
from hfsae.scores.matching import Matching, match_features
from hfsae.scores.noise import ConfidenceInterval, Ranking, bootstrap, ranking
from hfsae.scores.planted import Found, PlantedDictionary, find_planted
from hfsae.scores.probing import Probe, Probing, probe_concepts
from hfsae.scores.score import LabelledText, SAEScores, score
from hfsae.scores.shared_readings import SharedReadings

__all__ = [
    "PYTHON_CONCEPTS",
    "Absorption",
    "ConceptAbsorption",
    "DocumentSet",
    "FirstLetters",
    "Found",
    "ConfidenceInterval",
    "LabelledDocument",
    "LabelledText",
    "Matching",
    "PatternLabels",
    "PlantedDictionary",
    "Probe",
    "Probing",
    "Ranking",
    "LabelledRows",
    "SAEScores",
    "SharedReadings",
    "TokenLabels",
    "absorption",
    "bootstrap",
    "find_planted",
    "labelled_dataset",
    "make_set",
    "match_features",
    "probe_concepts",
    "ranking",
    "read_concepts",
    "score",
]
