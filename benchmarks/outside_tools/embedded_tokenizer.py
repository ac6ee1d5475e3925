"""The embedded language model's tokenizer, for transformers 4 and 5 alike."""

import json
import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def tokenizer_of(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, from a copy whose config names a class that transformers 4 knows too."""
    copy = Path(tempfile.mkdtemp())
    shutil.copy(Path(folder) / "tokenizer.json", copy)
    said = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**said, "tokenizer_class": "PreTrainedTokenizerFast"}))
    return AutoTokenizer.from_pretrained(copy)
