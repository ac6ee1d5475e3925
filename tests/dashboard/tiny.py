"""A collection whose tokens, labels and names are as hostile as text from strangers can be."""

import copy
import json
import random
import re
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfsae.analysis import FeatureCollection, collect_features
from tests.analysis.tiny import Setting, setting, texts

ATTACK = "</script><script>window.hacked=1</script>"
HOSTILE = (
    ATTACK,
    "<img/src=x/onerror=window.hacked=1>",
    "<svg/onload=window.hacked=1>",
    "<!--<script>",
    "-->]]>",
    "&lt;b&gt;&amp;",
    "'\"`${window.hacked=1}\\",
    "{{title}}{%",
    "javascript:alert(1)",
    "\u202e\u0000\ud7ff\U0001f4a3",
)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The hostile words have ids 1 to 10, `w0`, `w1`, ... those after them."""
    words = ["<eos>", *HOSTILE, *(f"w{i}" for i in range(30))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<eos>", eos_token="<eos>")


@cache
def hostile() -> Setting:
    """An SAE of 40 features and its language model, with the hostile tokenizer."""
    sae, model, _ = setting()
    return Setting(sae, model, tokenizer())


def documents(n: int = 40) -> list[str]:
    """Texts of hostile and harmless words."""
    chosen = random.Random(0)
    words = [*HOSTILE, *(f"w{i}" for i in range(12))]
    return [" ".join(chosen.choices(words, k=chosen.randint(4, 20))) for _ in range(n)]


@cache
def collection() -> FeatureCollection:
    return collect_features(*hostile(), documents(), n_top=4, n_sample=12, dataset=ATTACK, disable_tqdm=True)


def index_of(page: Path) -> dict:
    """The index of a page that was written."""
    found = re.search(r'<script type="application/json" id="index">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    return json.loads(found[1])


def saved_sae(place: Path) -> Path:
    """A folder with an SAE (`sae`), the language model that it names (`lm`) and a text (`text.jsonl`)."""
    sae, model, words = setting()
    model.save_pretrained(place / "lm")
    words.save_pretrained(place / "lm")
    saved = copy.deepcopy(sae)
    saved.config.base_model = str(place / "lm")
    saved.save_pretrained(place / "sae")
    (place / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    return place
