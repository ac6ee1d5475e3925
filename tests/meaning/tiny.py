"""The features of a tiny SAE, counterexamples to them, and a model that knows where they fire."""

from functools import cache

from hfsae.analysis import FeatureCollection, TokenTexts, collect_features
from hfsae.meaning.explaining import shown_and_held_out
from tests.analysis.tiny import setting, texts


@cache
def collection() -> FeatureCollection:
    return collect_features(*setting(), texts(60), n_top=4, n_sample=16, before=4, after=3, disable_tqdm=True)


def explained() -> list[int]:
    """Five features with many examples."""
    order = collection().densities.argsort(descending=True, stable=True)
    return sorted(collection().features[order[4:9]].tolist())


@cache
def held_out_texts() -> frozenset[str]:
    """The texts of all examples that features are scored on."""
    parts = TokenTexts(setting().tokenizer)
    found = [shown_and_held_out(collection().of(feature), 8)[1] for feature in explained()]
    return frozenset("".join(parts(example.token_ids)).strip() for examples in found for example in examples)
