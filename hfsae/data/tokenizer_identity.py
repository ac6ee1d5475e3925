"""What tells a tokenizer from another one: a digest of all that decides which tokens a text becomes."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What calls of a tokenizer leave behind in it, and every text is read without.
_OF_THE_LAST_CALL = ("padding", "truncation")


def refuse_no_tokenizer(tokenizer: object) -> None:
    """Refuses what is no tokenizer where one is needed, such as its name, a language model or a processor.

    Raises:
        TypeError: With what was given.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        inside = isinstance(getattr(tokenizer, "tokenizer", None), PreTrainedTokenizerBase)
        found = "its own, tokenizer" if inside else "AutoTokenizer.from_pretrained(name)"
        raise TypeError(f"expected a tokenizer of transformers, got a {type(tokenizer).__name__}: pass {found}.")


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A digest of a tokenizer's rules, vocabulary, special tokens and chat template.

    Args:
        tokenizer: Any tokenizer of transformers. Of one that is not made with the library tokenizers, the rules are
            told by its class.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):
        told: dict[str, Any] = json.loads(backend.to_str())
        rules: Any = {name: value for name, value in told.items() if name not in _OF_THE_LAST_CALL}
    else:
        rules = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    content = json.dumps([rules, special, template], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()
