"""The table: every architecture, ours and other libraries', on three models at three L0, with scores of features.

    python benchmarks/table.py [--models embedded] [--l0 32] [--seeds 0] [--who hfsae dictionary_learning] [--rates]

Models are the embedded one after block 1, books-4l-256 after block 2 (`--books_model`, `--books`) and SmolLM2-135M
after block 9 (`--smollm2`, `--books`). Text is Python's standard library, books, and both. All SAEs of a model read
the same activations in the same order. Peers need an environment of their own, see `peers.py`; else ours stand alone.

Rows named *default* have the learning rate of their own library. `--rates` adds rows named *searched*: the best of
five and the default by explained variance on calibration text, chosen with the first seed. Where L0 follows from a
penalty's coefficient, a peer is trained again until it is within 2 % of what is wanted, as in `quality.py`.

Each SAE is saved in hfsae's format, those of peers by way of their own project's files. So all are calibrated,
measured and scored by the same code, on text that no SAE was trained on. Each adds a line to `figures/table.jsonl`,
which is committed, and is not trained again: stop the command, and call it again, on another machine too.
`--table` prints what is there and trains nothing. Behind a mean stands the standard deviation of one seed.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from kept import found_line, kept_line, whole_run
from mixed_text import books_and_library
from peers import PEERS, Peer, Task
from quality import batches, next_coefficient
from safetensors.torch import load_file, save_file
from step import describe_machine
from torch import Tensor

from hfsae import SAE, SAETrainer, SAETrainingArguments, evaluate_sae
from hfsae.configuration import SAEConfig
from hfsae.data import LMActivations, TokenBlocks, load_text, split_documents
from hfsae.language_model import load_base_model, load_tokenizer
from hfsae.scores import LabelledText, PatternLabels, SharedReadings, match_features, ranking, score
from hfsae.scores.labelled_rows import FEATURES, NEURONS
from hfsae.scores.noise import ReseedNoise
from hfsae.scores.score_saved import labelled_text

ARCHITECTURES = ("topk", "batch_topk", "matryoshka", "standard", "jumprelu", "gated")
COLUMNS = (
    *("architecture", "", "learning rate", "seeds", "L0", "explained variance", "loss recovered", "KL", "never fired"),
    *("probing, k = 1", "above neurons", "absorption", "stability", "processor s"),
)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Rows that thresholds are set by, a peer's coefficient is judged by, and a learning rate is chosen by.
_CALIBRATION_ROWS = 8192
FIGURES = Path(__file__).resolve().parent / "figures" / "table.jsonl"
_CONTEXT = {"context_length": 128, "exclude_special_tokens": True, "exclude_positions": [0]}
_L0_TOLERANCE, _MOST_TRAININGS = 0.02, 8
_DEPENDS_ON = ("tokens", "batch_tokens", "expansion_factor", "eval_tokens", "silent_tokens", "score_tokens")
# A converted SAE computes what the library computed, but for ties.
_SAME = 1e-3

BOOK_CONCEPTS = {
    "direct speech": r"[\"“][^\"“”]*[\"”]",
    "title of a person": r"\b(?:Mr|Mrs|Miss|Dr|Sir|Lady)\b\.?",
    "name after a title": r"\b(?:Mr|Mrs|Miss|Dr|Sir|Lady)\.? ([A-Z]\w+)",
    "verb of saying": r"\b(?:said|cried|replied|asked|answered)\b",
    "pronoun of the first person": r"\b(?:I|me|my|mine)\b",
    "pronoun of the third person, female": r"\b[Ss]h?e?\b(?<=he)|\bher\b|\bhers\b",
    "negation": r"\b(?:not|never|no|nothing|none)\b",
    "number in words": r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|hundred|thousand)\b",
    "semicolon": r";",
    "dash": r"--|—",
    "end of a question": r"\?",
    "exclamation": r"!",
    "upper-case word": r"\b[A-Z]{2,}\b",
    "line break": r"\n",
    "`had` before a participle": r"\bhad (\w+ed)\b",
    "word that ends in -ing": r"\b\w{2,}ing\b",
    "word that ends in -ly": r"\b\w{2,}ly\b",
}
"""What tokens of books are labelled with; tokens of Python have `hfsae.scores.PYTHON_CONCEPTS`."""


@dataclass(frozen=True)
class Place:
    """Where SAEs read, and the text they read.

    Args:
        name: What the table calls it.
        model: A folder of the language model.
        text: What `load_text` takes.
        hook_point: The place.
        concepts: Regular expressions of the labels of its tokens; None for those of Python.
    """

    name: str
    model: str
    text: str
    hook_point: str
    concepts: dict[str, str] | None = None

    def config(self) -> SAEConfig:
        """A config that names the model."""
        return SAEConfig(d_in=1, n_features=1, base_model=self.model)

    def labelled(self) -> LabelledText:
        """The text that probes are fitted on and measured on."""
        if self.concepts is None:
            return labelled_text()
        text = load_text(self.text)
        sides = (split_documents(text, part) for part in ("calibration", "evaluation"))
        return LabelledText(*sides, PatternLabels(self.concepts), "books")


@dataclass(frozen=True)
class Cell:
    """One SAE of the table.

    Args:
        place: Where it reads.
        l0: Active features a token.
        who: `"hfsae"` or a peer.
        architecture: By our name.
        seed: Of its first weights.
        rate: Its learning rate; None for the library's own.
    """

    place: Place
    l0: int
    who: str
    architecture: str
    seed: int
    rate: float | None = None

    def folder(self, args: argparse.Namespace) -> Path:
        """Where it is saved: SAEs of other tokens or widths lie elsewhere, so that none is matched with them."""
        rate = "default" if self.rate is None else f"{self.rate:g}"
        trained = f"{args.tokens}-tokens-by-{args.batch_tokens}-{args.expansion_factor:g}x"
        name = f"{self.who}-{self.architecture}-{rate}-seed{self.seed}"
        return args.output / self.place.name / trained / f"l0-{self.l0}" / name

    def told(self, made: str, args: argparse.Namespace) -> dict[str, Any]:
        """What a line of figures is of: the cell, what was made, and the options that it depends on."""
        own = {name: getattr(self, name) for name in ("l0", "who", "architecture", "seed", "rate")}
        options = {name: getattr(args, name) for name in _DEPENDS_ON}
        return {"made": made, "place": self.place.name, **own, **options}


def places(args: argparse.Namespace) -> list[Place]:
    """The models that were asked for.

    Raises:
        SystemExit: If a folder or a text was not given.
    """
    needed = {"embedded": [], "books": ["books_model", "books"], "smollm2": ["smollm2", "books"]}
    for name in args.models:
        if missing := [option for option in needed[name] if getattr(args, option) is None]:
            raise SystemExit(f"{name} needs a folder or file that is not given: pass --{' and --'.join(missing)}.")
    made = {
        "embedded": lambda: Place("embedded", "examples/tiny_lm", "python-stdlib", "resid_post.1"),
        "books": lambda: Place("books", args.books_model, args.books, "resid_post.2", BOOK_CONCEPTS),
        "smollm2": lambda: Place("smollm2", args.smollm2, _smollm2_text(args), "resid_post.9"),
    }
    return [made[name]() for name in args.models]


def _smollm2_text(args: argparse.Namespace) -> str:
    return str(books_and_library(args.output / "smollm2" / "text.jsonl", Path(args.books)))


def rows_of(place: Place, part: str, wanted: int, output: Path, after: int = 0) -> Tensor:
    """(wanted, d) shuffled activations of a part of the text without its first `after` tokens, read once and kept."""
    file = output / place.name / f"{part}{f'-after-{after}' if after else ''}-{wanted}.safetensors"
    if not file.is_file():
        blocks = TokenBlocks(
            split_documents(load_text(place.text), part), load_tokenizer(place.config()), batch_size=32, **_CONTEXT
        )
        source = LMActivations(load_base_model(place.config()), blocks, place.hook_point, dtype=torch.bfloat16)
        chunks, passed, read = [], 0, 0
        while read < wanted:
            chunk = next(iter(next(source).values()))
            passed += len(chunk)
            if passed > after:
                chunks.append(chunk[-(passed - after) :].clone())
                read += len(chunks[-1])
        source.close()
        order = torch.randperm(read, generator=torch.Generator().manual_seed(0))[:wanted]
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"rows": torch.cat(chunks)[order].contiguous()}, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    return load_file(file)["rows"]


def train_ours(cell: Cell, rows: Tensor, args: argparse.Namespace) -> SAE:
    """Trains by `SAETrainer` with its defaults; thresholds are calibrated later."""
    with tempfile.TemporaryDirectory() as folder:
        training = SAETrainingArguments(
            output_dir=folder,
            architecture=cell.architecture,
            expansion_factor=args.expansion_factor,
            k=cell.l0,
            seed=cell.seed,
            training_tokens=args.tokens,
            train_batch_tokens=args.batch_tokens,
            save_steps=0,
            eval_tokens=0,
            calibration_tokens=0,
            shuffle_window_tokens=0,
            use_cpu=True,
            html_report=False,
            disable_tqdm=True,
            **({} if cell.rate is None else {"learning_rate": cell.rate}),
        )
        return whole_run(SAETrainer(args=training, activations=rows)).sae


def train_peer(cell: Cell, rows: Tensor, coefficient: float | None, args: argparse.Namespace) -> tuple[SAE, Peer]:
    """Trains another library's SAE on the rows as it would scale them, and reads what it saves.

    Raises:
        ValueError: If what is read does not compute what the library computes.
    """
    torch.manual_seed(cell.seed)
    task = Task(
        cell.architecture,
        d_in=rows.shape[1],
        n_features=round(args.expansion_factor * rows.shape[1]),
        k=cell.l0,
        steps=args.tokens // args.batch_tokens,
        batch=args.batch_tokens,
        coefficient=coefficient,
        learning_rate=cell.rate,
    )
    peer = PEERS[cell.who](task)
    assert peer is not None, "cells are of architectures that the library has"
    scale = peer.input_scale(rows[:8192].float())
    for batch in batches(rows, args.tokens, args.batch_tokens):
        peer.step(batch * scale)
    with tempfile.TemporaryDirectory() as folder:
        peer.save(Path(folder))
        saved = next(Path(folder).glob("**/*.json")).parent
        sae = SAE.from_pretrained(saved, allow_pickle=True)  # written a moment ago, by this process
    some = rows[:512].float() * scale
    with torch.no_grad():
        theirs, ours = peer.read_and_write(some)[0], sae(some).reconstruction
    # Among the rows of a batch the library chooses others than a threshold does.
    if not sae.needs_calibration and (theirs - ours).norm() > _SAME * theirs.norm():
        raise ValueError(f"{cell.who}'s {cell.architecture} is read as something that computes something else.")
    sae.input_scale.mul_(scale)
    return sae, peer


@torch.no_grad()
def on_rows(sae: SAE, rows: Tensor) -> dict[str, float]:
    """L0 and explained variance on some rows."""
    error = active = 0.0
    for part in rows.float().split(2048):
        output = sae(part)
        error += (output.reconstruction - part).double().square().sum().item()
        active += output.features.tokens_firing().sum().item()
    variance = (rows.double() - rows.double().mean(0)).square().sum().item()
    return {"l0": active / len(rows), "explained_variance": 1 - error / variance}


@torch.no_grad()
def never_fired(sae: SAE, rows: Tensor) -> float:
    """The share of features that fire on none of some rows: of few rows it would be that of rare features, too."""
    fired = torch.zeros(sae.config.n_features, dtype=torch.bool)
    for part in rows.split(4096):
        fired |= sae.encode_sparse(part.float()).tokens_firing() > 0
    return 1 - fired.double().mean().item()


def trained(cell: Cell, args: argparse.Namespace) -> tuple[SAE, dict[str, Any]]:
    """A cell's SAE, calibrated and ready to be measured, and what its training took."""
    rows = rows_of(cell.place, "train", args.tokens + args.batch_tokens, args.output)
    calibration = rows_of(cell.place, "calibration", _CALIBRATION_ROWS, args.output)
    tried: list[tuple[SAE, dict[str, Any]]] = []
    coefficient = None
    while len(tried) < _MOST_TRAININGS:
        begin, used = time.perf_counter(), time.process_time()
        peer = None
        if cell.who == "hfsae":
            sae = train_ours(cell, rows, args)
        else:
            sae, peer = train_peer(cell, rows, coefficient, args)
        took = {"seconds": time.perf_counter() - begin, "processor_seconds": time.process_time() - used}
        sae.eval()
        if sae.needs_calibration:
            sae.calibrate(lambda: iter(calibration.float().split(2048)))
        told = {"coefficient": peer.coefficient if peer else None, "calibration": on_rows(sae, calibration)}
        tried.append((sae, told | took))
        found = told["calibration"]["l0"]
        if told["coefficient"] is None or abs(found / cell.l0 - 1) <= _L0_TOLERANCE:
            break
        coefficient = next_coefficient({t["coefficient"]: t["calibration"]["l0"] for _, t in tried}, cell.l0)
    sae, told = min(tried, key=lambda one: abs(math.log(max(one[1]["calibration"]["l0"], 1e-3) / cell.l0)))
    for name, value in {"base_model": cell.place.model, "hook_point": cell.place.hook_point, **_CONTEXT}.items():
        setattr(sae.config, name, value)
    return sae, {**told, "trainings": len(tried)}


_COMMON: dict[str, tuple[Any, Any, LabelledText, SharedReadings]] = {}


def common(place: Place) -> tuple[Any, Any, LabelledText, SharedReadings]:
    """The language model of all cells of a place, its tokenizer, labelled text, and what the model makes of it."""
    if place.name not in _COMMON:
        config = place.config()
        _COMMON[place.name] = load_base_model(config), load_tokenizer(config), place.labelled(), SharedReadings()
    return _COMMON[place.name]


def figures(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Trains, saves, measures and scores one SAE."""
    sae, told = trained(cell, args)
    sae.save_pretrained(cell.folder(args))
    model, tokenizer, text, shared = common(cell.place)
    measured = evaluate_sae(
        sae,
        model,
        split_documents(load_text(cell.place.text), "evaluation"),
        tokenizer,
        max_tokens=args.eval_tokens,
        calibration=rows_of(cell.place, "calibration", _CALIBRATION_ROWS, args.output).float(),
        disable_tqdm=True,
    )
    names = ("l0", "explained_variance", "loss_recovered", "kl", "ce_increase")
    found = {**{name: measured[name] for name in names}, **told}
    # Of the text that is trained on, what comes after the training: that of the evaluation is too short.
    unseen = rows_of(cell.place, "train", args.silent_tokens, args.output, after=args.tokens + args.batch_tokens)
    found["never_fired"] = never_fired(sae, unseen)
    if args.score_tokens:
        scores = score(
            *(sae, model, tokenizer, text),
            kinds=["tokens", "absorption"],
            beside=[NEURONS],
            letters=False,
            max_tokens=args.score_tokens,
            shared=shared,
        )
        assert scores.tokens is not None and scores.absorption is not None
        found |= {
            "probing": vars(scores.tokens.mean_f1(FEATURES, 1)),
            "concepts": len(scores.tokens.concepts),
            "absorption": None if scores.absorption.mean is None else vars(scores.absorption.mean),
        }
        if NEURONS in scores.tokens.numbers:
            found["above_neurons"] = scores.tokens.above((FEATURES, 1), (NEURONS, 1)).value
    return {**found, "machine": describe_machine(torch.device("cpu"))}


def figures_of(
    cell: Cell, made: str, args: argparse.Namespace, make: Callable[[], dict[str, Any]]
) -> dict[str, Any] | None:
    """Figures that are kept, or made now; None where they are neither kept nor to be made."""
    of = cell.told(made, args)
    return found_line(args.figures, of) if args.table else kept_line(args.figures, of, make)


def best_rate(cell: Cell, args: argparse.Namespace) -> float | None:
    """The learning rate of the five and the default that explains most of calibration text; None for the default."""
    explained: dict[float | None, float] = {}
    for rate in (None, *RATES):
        tried = Cell(cell.place, cell.l0, cell.who, cell.architecture, cell.seed, rate)
        told = found_line(args.figures, tried.told("figures", args)) or figures_of(
            tried, "search", args, lambda one=tried: trained(one, args)[1]
        )
        if told is None:
            return None
        explained[rate] = told["calibration"]["explained_variance"]
    return max(explained, key=lambda rate: explained[rate])


def stability(cells: Sequence[Cell], args: argparse.Namespace) -> float | None:
    """The share of features that the first two seeds have in common; None where there are no two."""
    if len(cells) < 2:
        return None
    first, second = (cell.folder(args) for cell in cells[:2])
    of = cells[0].told(f"match with seed {cells[1].seed}", args)

    def matched() -> dict[str, Any]:
        return match_features(SAE.from_pretrained(first), SAE.from_pretrained(second)).recorded()

    # Figures may be of another machine, and their SAEs not here.
    here = not args.table and first.is_dir() and second.is_dir()
    found = kept_line(args.figures, of, matched) if here else found_line(args.figures, of)
    return None if found is None else found["shared"]["value"]


def row(cells: Sequence[Cell], title: str, args: argparse.Namespace) -> tuple[str, list[dict[str, Any]]] | None:
    """A row of the table, in Markdown, and its figures, seed by seed; None where nothing is there or made now."""
    found, there = [], []
    for cell in cells:
        told = figures_of(cell, "figures", args, partial(figures, cell, args))
        if told is not None:
            found.append(told)
            there.append(cell)
    if not found:
        return None
    shared = stability(there, args)
    numbers = [
        _mean(found, "l0", ".1f"),
        _with_noise(found, "explained_variance", ".4f"),
        _with_noise(found, "loss_recovered", ".4f"),
        _with_noise(found, "kl", ".4f"),
        _with_noise(found, "never_fired", ".1%"),
        _with_noise(found, "probing", ".3f"),
        f"{_with_noise(found, 'above_neurons', '.0f')} of {found[0]['concepts']}"
        if "above_neurons" in found[0]
        else "",
        _with_noise(found, "absorption", ".3f"),
        "" if shared is None else f"{shared:.3f}",
        _mean(found, "processor_seconds", ".0f"),
    ]
    one = cells[0]
    return f"| {one.architecture} | {one.who} | {title} | {len(found)} | {' | '.join(numbers)} |", found


def _values(found: Sequence[dict[str, Any]], name: str) -> list[float]:
    """One figure of each seed that has it; of scores with an interval the value."""
    told = [one[name] for one in found if one.get(name) is not None]
    return [one["value"] if isinstance(one, dict) else one for one in told]


def _mean(found: Sequence[dict[str, Any]], name: str, form: str) -> str:
    values = _values(found, name)
    return format(fmean(values), form) if values else ""


def _with_noise(found: Sequence[dict[str, Any]], name: str, form: str) -> str:
    """The mean over seeds; behind it, where there are several, the standard deviation of one."""
    noise = ReseedNoise.of(_values(found, name))
    return _mean(found, name, form) + ("" if noise is None else f" ± {format(noise.deviation, form)}")


def orders(ours: Mapping[str, Sequence[dict[str, Any]]]) -> Iterator[str]:
    """Of each score of features the order of our architectures, or that seeds leave none; nothing of single seeds."""
    for name, higher_is_better in (("probing", True), ("above_neurons", True), ("absorption", False)):
        scores = {architecture: values for architecture, found in ours.items() if (values := _values(found, name))}
        if len(scores) > 1:
            order = ranking(scores, higher_is_better=higher_is_better)
            if order.within is not None:
                yield f"* {name.replace('_', ' ')}: {order}"


def has(who: str, architecture: str, l0: int) -> bool:
    """Whether a library that is there has the architecture."""
    return who == "hfsae" or PEERS[who](Task(architecture, d_in=8, n_features=128, k=l0, steps=8, batch=8)) is not None


def main(command_line: Sequence[str] | None = None) -> None:
    """Makes what is missing, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["embedded", "books", "smollm2"], default=["embedded"])
    parser.add_argument("--l0", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--who", nargs="+", choices=["hfsae", *PEERS], default=["hfsae", *PEERS])
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--rates", action="store_true", help="a second row each, with a learning rate searched for")
    parser.add_argument("--tokens", type=int, default=400_000, help="to train on (default: %(default)s)")
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--expansion_factor", type=float, default=16)
    parser.add_argument("--eval_tokens", type=int, default=20_000, help="held-out tokens (default: %(default)s)")
    parser.add_argument("--silent_tokens", type=int, default=200_000, help="tokens after the training, to fire on")
    parser.add_argument("--score_tokens", type=int, default=30_000, help="of each side of the scores; 0: no scores")
    parser.add_argument("--books", help="books, a paragraph in `text` a line")
    parser.add_argument("--books_model", help="folder of books-4l-256")
    parser.add_argument("--smollm2", help="folder of SmolLM2-135M")
    parser.add_argument("--table", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--output", type=Path, default=Path("runs/table"), help="where SAEs and activations are kept")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="the file of figures (default: %(default)s)")
    args = parser.parse_args(command_line)
    for place in places(args):
        for l0 in args.l0:
            print(f"\n{place.name}, {place.hook_point}, L0 {l0}, {args.tokens:,} tokens\n")
            print(f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS))
            ours = {}
            for architecture in args.architectures:
                for who in args.who:
                    if not has(who, architecture, l0):
                        continue
                    cells = [Cell(place, l0, who, architecture, seed) for seed in args.seeds]
                    rows = [row(cells, "default", args)]
                    if args.rates and (rate := best_rate(cells[0], args)) is not None:
                        searched = [Cell(place, l0, who, architecture, seed, rate) for seed in args.seeds]
                        rows.append(row(searched, f"{rate:g}, searched", args))
                    for line, _ in filter(None, rows):
                        print(line, flush=True)
                    if who == "hfsae" and rows[0]:
                        ours[architecture] = rows[0][1]
            print("\n".join(["", *orders(ours)]))


if __name__ == "__main__":
    main()
