"""A card as it was written: its bytes, where `huggingface_hub` would rewrite its metadata and lose entries."""

from typing import cast

from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK


class WrittenCard(ModelCard):
    """A card whose content is what was written, as long as neither its metadata nor its text are changed.

    `huggingface_hub` (2.4) rewrites all metadata, and gives the results of all entries of a `model-index` to one.
    """

    @property
    def content(self) -> str:
        """The whole card."""
        return written(self) or str(super().content)

    @content.setter
    def content(self, content: str) -> None:
        ModelCard.content.fset(self, content)  # type: ignore[attr-defined]


def written(card: ModelCard) -> str | None:
    """What a card was read from; None where it was changed since."""
    content = cast("str | None", getattr(card, "_content", None))
    if content is None:
        return None
    before = ModelCard(content, ignore_metadata_errors=card.ignore_metadata_errors)
    same = before.text == card.text and repr(before.data.to_dict()) == repr(card.data.to_dict())
    return content if same else None


def front_and_text(card: ModelCard | None) -> tuple[str, str]:
    """The YAML and the text of a card, with line feeds alone."""
    if card is None:
        return "", ""
    content = (written(card) or str(card)).replace("\r\n", "\n")
    block = REGEX_YAML_BLOCK.search(content)
    return ("", content) if block is None else (block[2], content[block.end() :])
