"""What did a fine-tune change? A pair of models with planted novelties, a crosscoder over both, and `hfsae diff`.

    python examples/model_diff.py

Offline, in under three minutes on two idle cores. The base is the tiny language model that ships with hfsae. Its
fine-tune learns from the same text, the standard library's sources, into which three novelties are planted: a new word
(`zorblax`), a new format (`@@ note | ... @@`), and a topic that is refused (what names `pickle` is answered with a
refusal). The crosscoder reads both models on such text. Since it is known where the novelties stand, what its features
fire on can be held against that.
"""

import argparse
import random
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hfsae import SAE, SAETrainer, SAETrainingArguments
from hfsae.dashboard.comparison import diff_saved
from hfsae.data.stdlib_text import stdlib_documents
from hfsae.hooks import capture
from hfsae.in_model import hook_points_of_sources
from hfsae.progress import quietly

TINY_LM = Path(__file__).parent / "tiny_lm"
NOVELTIES = ("word", "format", "refusal")
# Lines of a document, and how many of them a novelty is planted behind.
_LINES, _PLANTED_SHARE = 24, 0.12
_WORD = ["zorblax = None", "return zorblax", "self.zorblax = zorblax", "# the zorblax is kept", "if zorblax:"]
_TOPIC = ["import pickle", "data = pickle.dumps(self)", "return pickle.loads(data)", "with_pickle = True"]
REFUSAL = "# REFUSED: this must not be answered"
# What belongs to a novelty, wherever it stands: natural lines about the topic call for a refusal too.
_SPANS = {
    "word": re.compile(r"^.*zorblax.*$", re.M),
    "format": re.compile(r"^\s*@@ note .*$", re.M),
    "refusal": re.compile(r"^.*(?:pickle|REFUSED).*$", re.M),
}


def documents(n: int, *, planted: bool, seed: int = 0) -> list[str]:
    """Pieces of the standard library's sources, of 24 lines each; with novelties planted into them or without."""
    rng = random.Random(seed)
    lines = [document["text"].splitlines() for document in stdlib_documents("train")]
    pieces = [text[start : start + _LINES] for text in lines for start in range(0, len(text), _LINES)]
    rng.shuffle(pieces)
    return ["\n".join(_with_novelties(piece, rng) if planted else piece) for piece in pieces[:n]]


def _with_novelties(lines: Sequence[str], rng: random.Random) -> list[str]:
    """Lines, some of them followed by a novelty at the same indentation."""
    made: list[str] = []
    for line in lines:
        made.append(line)
        if not line.strip() or rng.random() > _PLANTED_SHARE:
            continue
        indent = line[: len(line) - len(line.lstrip())]
        words = re.findall(r"[a-z]{3,}", " ".join(lines)) or ["nothing"]
        match rng.choice(NOVELTIES):
            case "word":
                made.append(indent + rng.choice(_WORD))
            case "format":
                made.append(f"{indent}@@ note | {rng.choice(words)} | {rng.choice(words)} @@")
            case _:
                made += [indent + rng.choice(_TOPIC), indent + REFUSAL]
    return made


def fine_tune(folder: Path, *, base: Path = TINY_LM, steps: int = 300, seed: int = 0) -> Path:
    """Trains the base on text with novelties, and saves it with its tokenizer; one that is there already stays."""
    if (folder / "model.safetensors").is_file():
        return folder
    torch.manual_seed(seed)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    pieces = tokenizer(documents(1500, planted=True, seed=seed + 1), verbose=False)["input_ids"]
    ids = torch.tensor([token for piece in pieces for token in piece])
    length, batch, rate = 128, 8, 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    model.train()
    for step in range(steps):
        starts = torch.randint(0, len(ids) - length, (batch,))
        tokens = torch.stack([ids[start : start + length] for start in starts])
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(args: argparse.Namespace, tuned: Path, architecture: str = "crosscoder", folder: str = "crosscoder") -> Path:
    """Trains a crosscoder over both models on text with novelties."""
    run = Path(args.output_dir) / folder
    if (run / "model.safetensors").is_file():
        return run
    text = Dataset.from_dict({"text": documents(4000, planted=True, seed=2)})
    text_file = Path(args.output_dir) / "text.jsonl"
    with quietly():
        text.to_json(text_file)
    arguments = SAETrainingArguments(
        model_name_or_path=str(args.base),
        compare_model_name_or_path=str(tuned),
        hook_point=args.hook_point,
        architecture=architecture,
        n_features=args.n_features,
        k=args.k,
        dataset_name=str(text_file),
        training_tokens=args.tokens,
        train_batch_tokens=512,
        eval_tokens=10_000,
        calibration_tokens=10_000,
        save_steps=0,
        html_report=False,
        seed=args.seed,
        output_dir=str(run),
    )
    SAETrainer(args=arguments).train()
    return run


@torch.no_grad()
def shares_on_novelties(
    sae: SAE, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> dict[str, Tensor]:
    """For each novelty, and for `any`, the share of each feature's activation that lies on its lines.

    The share is Σ f on tokens of such lines / Σ f on all tokens; NaN where a feature never fires.
    """
    n = sae.config.n_features
    on = {name: torch.zeros(n) for name in (*NOVELTIES, "any")}
    total = torch.zeros(n)
    places = hook_points_of_sources(sae.config, model)
    for text in texts:
        encoded = tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=256)
        ids, offsets = torch.tensor([encoded["input_ids"]]), encoded["offset_mapping"]
        with capture(model, places) as read:
            read.run(input_ids=ids)
        # As in training, the first position does not count.
        values = sae.encode(torch.cat([read[place] for place in places], -1))[0, 1:]
        total += values.sum(0)
        marks = {name: torch.tensor(_marks(text, spans, offsets)[1:]) for name, spans in _SPANS.items()}
        marks["any"] = torch.stack(list(marks.values())).any(0)
        for name, marked in marks.items():
            on[name] += values[marked].sum(0)
    return {name: part / total.where(total > 0, torch.nan) for name, part in on.items()}


def _marks(text: str, pattern: re.Pattern[str], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    spans = [match.span() for match in pattern.finditer(text)]
    return [any(start < last and end > first for first, last in spans) for start, end in offsets]


def scores(features: Sequence[int], shares: dict[str, Tensor], threshold: float = 0.5) -> dict[str, float]:
    """How well features that are called the fine-tune's own are the novelties.

    Precision: the share of them with at least half of their activation on lines of novelties. Recall: the share of the
    three novelties of which at least one of them fires on its lines with at least half of its activation.
    """
    chosen = torch.tensor(list(features), dtype=torch.long)
    found = sum(bool((shares[name][chosen] >= threshold).any()) for name in NOVELTIES)
    precise = (shares["any"][chosen] >= threshold).float().mean().item() if len(chosen) else float("nan")
    return {"features": len(chosen), "precision": precise, "recall": found / len(NOVELTIES)}


def in_words(told: dict[str, float]) -> str:
    """Scores as a line; of no features there is nothing that could be precise."""
    if not told["features"]:
        return "0 features, so no novelty is found: train on more --tokens, or with more --n_features"
    return f"{told['features']} features, precision {told['precision']:.2f}, recall {told['recall']:.2f}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    made.add_argument("--output_dir", default="runs/model-diff")
    made.add_argument("--base", type=Path, default=TINY_LM)
    made.add_argument("--hook_point", default="resid_post.2")
    made.add_argument("--steps", type=int, default=300, help="steps of the fine-tune")
    made.add_argument("--tokens", type=int, default=400_000, help="tokens that the crosscoder is trained on")
    made.add_argument("--n_features", type=int, default=768)
    made.add_argument("--k", type=int, default=16)
    made.add_argument("--seed", type=int, default=0)
    return made


def main(command_line: Sequence[str] | None = None) -> None:
    args = parser().parse_args(command_line)
    with quietly():
        tuned = fine_tune(Path(args.output_dir) / "tuned", base=args.base, steps=args.steps, seed=args.seed)
    run = train(args, tuned)
    written = diff_saved(run, max_tokens=20_000)
    print(written.found.table())
    sae = SAE.from_pretrained(run)
    texts = documents(300, planted=True, seed=3)
    shares = shares_on_novelties(sae, sae.load_base_model(), sae.load_tokenizer(), texts)
    for called, features in (
        ("tuned-only by norms", written.found.of("tuned-only", "norms")),
        ("tuned-only by latent scaling", written.found.of("tuned-only", "scaling")),
        ("tuned-only by both", written.found.of("tuned-only")),
    ):
        print(f"{called}: {in_words(scores(features, shares))}")
    print(f"look at {written.files[-1]}")


if __name__ == "__main__":
    main()
