#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: of a model saved without its tokenizer, AutoTokenizer makes one that knows no word.
#
# model.save_pretrained(folder) alone leaves no tokenizer there, as after many a fine-tuning. AutoTokenizer then takes the
# class that belongs to the config, and for some classes gives it an empty vocabulary, without a word of warning. Text
# becomes no tokens at all, or unknown ones, and whatever reads it goes on with that. Other classes raise a ValueError.
# Expected: an error for every class, as llama's has.
# Seen, "hello world" by the tokenizer of a folder that holds a config alone (rows of the two releases are the same):
#   gpt2, qwen2, gpt_neox   no tokens
#   bert                    2 1 1 3: [CLS] [UNK] [UNK] [SEP]
#   gemma                   3: <unk>
#   llama                   ValueError
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys
import tempfile

import transformers
from transformers import AutoConfig, AutoTokenizer

print("transformers", transformers.__version__)
seen = {}
for family in ("gpt2", "qwen2", "gpt_neox", "bert", "gemma", "llama"):
    with tempfile.TemporaryDirectory() as model:
        AutoConfig.for_model(family).save_pretrained(model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
            seen[family] = tokenizer("hello world")["input_ids"]
            print(family, type(tokenizer).__name__, seen[family], tokenizer.convert_ids_to_tokens(seen[family]))
        except ValueError as error:
            seen[family] = "ValueError"
            print(family, "ValueError:", str(error).split("\n")[0])
expected = {"gpt2": [], "qwen2": [], "gpt_neox": [], "bert": [2, 1, 1, 3], "gemma": [3], "llama": "ValueError"}
sys.exit(seen != expected)
PYTHON

python3 -m venv "$folder/env"
for release in 5.23.0 5.24.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check "transformers==$release"
    HF_HUB_OFFLINE=1 "$folder/env/bin/python" -W ignore "$folder/check.py"
done
