"""The page about a saved SAE, written again from its config, its log and examples of what its features fire on."""

from pathlib import Path

from hfsae.analysis.report_features import EXAMPLE_TOKENS, report_features
from hfsae.hub.card import draw_pictures
from hfsae.hub.html_report import ShownFeature, write_report
from hfsae.language_model import rename_base_model
from hfsae.loading import load_config
from hfsae.modeling import SAE
from hfsae.saved.measuring_again import text_to_measure


def write_saved_report(
    folder: str | Path,
    *,
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    max_tokens: int = EXAMPLE_TOKENS,
    disable_tqdm: bool = False,
) -> Path:
    """Writes the page of a saved SAE again, from its config, its log and examples of what its features fire on.

    Args:
        folder: Where it was saved.
        model: The language model; None loads the one that the config names. Without either there are no examples, and
            none of a crosscoder, whose features read several places.
        dataset: Text of the examples; None takes the one that the recorded metrics were measured on.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset; None: the only one, or `"test"`.
        max_tokens: Tokens of it to read.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        The page's path.

    Raises:
        ValueError: If the folder holds no SAE, or no text is named and none was recorded.
        OSError: If the language model or the text is not there.
    """
    sae, config = SAE.from_pretrained(folder), load_config(folder)
    features: list[ShownFeature] = []
    if model is not None:
        rename_base_model(sae.config, model)
    if sae.config.base_model is not None and not sae.config.is_crosscoder:
        source = text_to_measure(config, folder, dataset, dataset_config, split).source
        tokenizer, text = sae.load_tokenizer(), source.documents()
        options = {"max_tokens": max_tokens, "text_column": source.text_column, "disable_tqdm": disable_tqdm}
        features = report_features(sae, sae.load_base_model(), tokenizer, text, **options)
    draw_pictures(Path(folder), config)
    return write_report(Path(folder), config, features)
