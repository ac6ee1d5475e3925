"""Trains the tiny language model in `examples/tiny_lm/`, with which every example runs offline.

It is a GPT-2 of 1.35 million parameters with a byte-level BPE tokenizer, both learned from the sources of Python's
standard library: real text that every machine with Python has. A fifth of the files is held out, and the model card
is written from what is measured on those.

    python examples/make_tiny_lm.py                                              # the shipped model
    python examples/make_tiny_lm.py --tokens 400000 --output_dir runs/tiny_lm    # a far worse one, in two minutes
"""

import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from hfsae.data.stdlib_text import StdlibSplit, stdlib_digest, stdlib_documents

END_OF_TEXT, END_OF_TEXT_ID = "<|endoftext|>", 0  # the tokenizer's trainer numbers special tokens first

# What a token may span, the first alternative that matches. A line break and the next line's indentation are one piece
# of syntax in Python; a word, up to three digits, or punctuation take the space in front of them with them.
TOKEN_PATTERN = r"\s*\n[ \t]*| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

PROMPT = "class Queue:\n    def __init__(self"


@dataclass
class Arguments:
    """What the command line sets. The defaults make the shipped model."""

    output_dir: Path = field(default=Path(__file__).parent / "tiny_lm", metadata={"help": "where the model goes"})
    tokens: int = field(default=12_000_000, metadata={"help": "tokens to train on, in several passes"})
    save_steps: int = field(default=1500, metadata={"help": "steps from one measured and saved state to the next"})
    vocab_size: int = 4096
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = field(default=256, metadata={"help": "tokens in a window"})
    batch_size: int = field(default=8, metadata={"help": "windows in a step"})
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    seed: int = 0


@dataclass
class Corpus:
    """One split as a single stream of token ids, `<|endoftext|>` before each document."""

    stream: torch.Tensor  # (n_tokens,), int64
    n_bytes: int  # of the documents in UTF-8, separators not counted
    digest: str

    @property
    def n_tokens(self) -> int:
        return len(self.stream)

    @property
    def bytes_per_token(self) -> float:
        return self.n_bytes / self.n_tokens


def train_tokenizer(vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Learns a byte-level BPE, lossless on any text, from the train split."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes, also bytes that the corpus lacks: nothing is ever unknown.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document["text"] for document in stdlib_documents("train")), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,  # would drop spaces before punctuation on decoding
    )


def read_split(tokenizer: PreTrainedTokenizerFast, split: StdlibSplit) -> Corpus:
    """Reads and tokenizes one split of the standard library."""
    texts = [document["text"] for document in stdlib_documents(split)]
    # Whole files are longer than the model's context, which is no mistake here: verbose=False stops the warning.
    ids = tokenizer([END_OF_TEXT + text for text in texts], verbose=False)["input_ids"]
    stream = torch.tensor(list(chain.from_iterable(ids)))
    return Corpus(stream, n_bytes=sum(len(text.encode()) for text in texts), digest=stdlib_digest(split))


def new_model(args: Arguments) -> GPT2LMHeadModel:
    """An untrained model. It has no dropout, as it sees its data only a few times."""
    config = GPT2Config(
        vocab_size=args.vocab_size,
        n_positions=args.context,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.heads,
        activation_function="gelu_pytorch_tanh",  # GPT-2's "gelu_new" in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )
    return GPT2LMHeadModel(config)


def batches(stream: torch.Tensor, context: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Shuffled windows of `context + 1` tokens, pass after pass without end.

    Every pass cuts the stream at another offset, so that a token is not always seen in the same context.
    """
    while True:
        offset = int(torch.randint(context, ()))
        windows = stream[offset:].unfold(0, context + 1, context)
        for chosen in torch.randperm(len(windows)).split(batch_size):
            yield windows[chosen]


def next_token_loss(model: GPT2LMHeadModel, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in nats, of each token in a window but the first, given those before it."""
    logits = model(windows[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def measure(model: GPT2LMHeadModel, train: Corpus, held_out: Corpus) -> dict[str, float]:
    """Nats per held-out token: of the model, of the train split's unigram frequencies, and of chance."""
    # One window's last token is the next one's first, so every token is predicted once.
    windows = held_out.stream.unfold(0, model.config.n_positions + 1, model.config.n_positions)
    model.eval()
    groups = tqdm(windows.split(8), desc="measuring", leave=False)
    model_loss = sum(next_token_loss(model, group).item() * len(group) for group in groups) / len(windows)
    # One is added to each count: a token that the train split lacks must not cost infinitely much.
    counts = torch.bincount(train.stream, minlength=model.config.vocab_size).double() + 1
    unigram = -(counts / counts.sum()).log()[windows[:, 1:]].mean().item()
    return {"model": model_loss, "unigram": unigram, "uniform": math.log(model.config.vocab_size)}


def draw_sample(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> str:
    """Continues `PROMPT`, without disturbing the random numbers that training goes on with."""
    inputs = tokenizer(END_OF_TEXT + PROMPT, return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = dict(do_sample=True, temperature=0.8, max_length=min(160, model.config.n_positions))
        ids = model.generate(**inputs, **options, pad_token_id=END_OF_TEXT_ID)  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)[0].rstrip()


def save(
    args: Arguments,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Corpus,
    held_out: Corpus,
    trained_tokens: int,
    minutes: float,
) -> None:
    """Writes model, tokenizer and a card with fresh measurements."""
    nats = measure(model, train, held_out)
    tqdm.write(f"after {trained_tokens:,} tokens, in nats per held-out token: {nats}")
    metadata = ModelCardData(
        license="apache-2.0", language="code", library_name="transformers", pipeline_tag="text-generation"
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(Path(__file__).with_name("tiny_lm_card.md")),
        args=args,
        parameters=model.num_parameters(),
        python=platform.python_version(),
        train=train,
        held_out=held_out,
        nats=nats,
        bits={name: loss / math.log(2) / held_out.bytes_per_token for name, loss in nats.items()},
        trained_tokens=trained_tokens,
        minutes=minutes,
        prompt=repr(PROMPT),
        sample=draw_sample(model, tokenizer, args.seed),
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    # Written beside and moved, so that a run stopped at any time leaves whole files.
    with tempfile.TemporaryDirectory(dir=args.output_dir.parent) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        card.save(Path(beside, "README.md"))
        for path in Path(beside).iterdir():
            os.replace(path, args.output_dir / path.name)


def main(argv: list[str] | None = None) -> None:
    """Trains, and saves as it goes."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)  # pyright: ignore[reportArgumentType]
    set_seed(args.seed)
    started = time.monotonic()

    tokenizer = train_tokenizer(args.vocab_size, args.context)
    train, held_out = read_split(tokenizer, "train"), read_split(tokenizer, "held_out")

    model = new_model(args)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]  # biases, layer norms: no decay
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95), fused=True)
    steps = math.ceil(args.tokens / (args.batch_size * args.context))
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=steps // 50, num_training_steps=steps)

    trained_tokens = 0
    progress = tqdm(batches(train.stream, args.context, args.batch_size), desc="training", total=steps)
    for step, windows in enumerate(islice(progress, steps), start=1):
        model.train()
        loss = next_token_loss(model, windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        trained_tokens += windows[:, 1:].numel()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if step % args.save_steps == 0 or step == steps:
            save(args, model, tokenizer, train, held_out, trained_tokens, (time.monotonic() - started) / 60)


if __name__ == "__main__":
    main()
