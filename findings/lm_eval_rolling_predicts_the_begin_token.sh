#!/usr/bin/env bash
# lm-eval 0.4.13: perplexity and bits per byte take the token that begins a text for one that the model has to
# foretell, wherever the tokenizer adds it, as those of Llama, Mistral and Gemma do.
#
# loglikelihood_rolling puts a prefix token before a text, so that its first token has a context: the tokenizer's BOS.
# It tokenizes the text as the tokenizer does by itself, with a BOS of its own, and takes that for the text's first
# token. So the model reads BOS twice, and its probability of a second BOS is multiplied in, which training never
# showed it. The shorter the texts, the larger the part of it. Models whose tokenizers add no BOS have nothing of it,
# and are compared with by bits per byte. loglikelihood, which tasks of several choices use, reads BOS once.
# Expected: the log-likelihood of the text's tokens after one BOS, as a forward pass gives it.
# Seen with a Llama of random weights and a text of 8 words, log-likelihood in nats:
#   forward pass: of the 8 words after one BOS                -21.349
#   forward pass: of BOS and the 8 words after one BOS        -25.157
#   loglikelihood_rolling                                     -25.157
#   loglikelihood_rolling with add_bos_token=False            -21.349
#   forward pass, and loglikelihood: of 7 words after BOS and the first one   -19.710
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import importlib.metadata
import logging
import sys

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logging.disable(logging.CRITICAL)
words = "one two three four five six seven eight".split()
vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *words])}
inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
names = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)

torch.manual_seed(0)
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(vocabulary), max_position_embeddings=64)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5 * 1.5)


@torch.no_grad()
def by_hand(context, tokens):
    """The log-likelihood of tokens after a context."""
    ids = torch.tensor([context + tokens])
    likely = model(ids).logits[0].log_softmax(-1)
    return sum(float(likely[at - 1, ids[0, at]]) for at in range(len(context), ids.shape[1]))


def rolling(text, **options):
    scorer = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1, max_length=64, **options)
    return scorer.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)[0]


text, ids = " ".join(words), [vocabulary[word] for word in words]
scorer = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1, max_length=64)
asked = Instance("loglikelihood", {}, (words[0], " " + " ".join(words[1:])), 0)
after_a_word = scorer.loglikelihood([asked], disable_tqdm=True)[0][0]
one, two = by_hand([1], ids), by_hand([1], [1, *ids])
found, without, continued = rolling(text), rolling(text, add_bos_token=False), by_hand([1, ids[0]], ids[1:])
print("lm-eval", importlib.metadata.version("lm_eval"))
print(f"by hand, one BOS {one:.3f}, BOS foretold {two:.3f}; rolling {found:.3f}, without {without:.3f}")
print(f"after the first word: by hand {continued:.3f}, loglikelihood {after_a_word:.3f}")
near = [abs(found - two), abs(without - one), abs(after_a_word - continued)]
sys.exit(not (max(near) < 1e-3 and two < one - 1))
PYTHON

python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 "lm-eval[hf]==0.4.13"
"$folder/env/bin/python" -W ignore "$folder/check.py"
