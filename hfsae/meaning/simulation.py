"""Simulation: how well an explanation foretells how strongly a feature fires on each token.

As Bills et al. 2023, "Language models can explain neurons in language models". A model is given the explanation and
the tokens of a piece of text, and gives each a number from 0 to 10. The score is the correlation of these numbers and
the true activations, over the tokens of all pieces. Half of the pieces are examples that were not shown to the model
that explained. In the others, which are random, the feature does not fire.

Of a model that runs here the numbers are expected values over its probabilities of each number. They are read in one
pass, in which `unknown` stands behind each token. A server writes whole numbers.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hfsae.analysis import Example, TokenTexts
from hfsae.hooks.devices import input_device
from hfsae.label_file import SIMULATION, Score
from hfsae.meaning.chat import Chat, Conversation, LocalChat
from hfsae.meaning.label_prompts import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST = 10
_UNKNOWN = "\tunknown"
# What a server writes for a token: the token, a tab, a number, the end of the line.
_TOKENS_A_LINE = 8
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_QUOTES = "\"'`"
_SIGNS = str.maketrans({"\n": "\\n", "\t": "\\t", "\r": "\\r"})
_N_RESAMPLES = 1000
FEWEST_OF_A_KIND = 2
"""Pieces of each kind, which fire and do not, that a score needs at least."""


class Piece(NamedTuple):
    """A piece of text whose activations are to be foretold.

    Attributes:
        tokens: The texts of its tokens.
        activations: How strongly the feature fires on each.
    """

    tokens: list[str]
    activations: list[float]


class Simulator(NamedTuple):
    """A model that foretells activations.

    Attributes:
        chat: Answers a prompt with a line for each token: the token, a tab, its number.
        most: The largest number.
        tokens_a_line: Tokens that it writes for a token, at most.
    """

    chat: Chat
    most: int
    tokens_a_line: int

    def scores(
        self, asked: Mapping[int, tuple[str, Sequence[Piece]]], prompts: Prompts
    ) -> dict[int, tuple[dict[str, Score], int]]:
        """The scores of features by their names in `labels.json`, and of how many pieces there were no numbers.

        Args:
            asked: The explanation of each feature, and its pieces.
            prompts: The templates.
        """
        pairs = [(feature, text, piece) for feature, (text, pieces) in asked.items() for piece in pieces]
        conversations = [simulation_prompt(text, piece, self.most, prompts) for _, text, piece in pairs]
        longest = max((self.tokens_to_write(piece) for *_, piece in pairs), default=0)
        answers = dict(self.chat.answers(conversations, longest))
        told: dict[int, list[tuple[Piece, list[float] | None]]] = {feature: [] for feature in asked}
        for i, (feature, _, piece) in enumerate(pairs):
            told[feature].append((piece, foretold_in(answers[i], piece.tokens, self.most)))
        return {
            feature: (simulation_score(found), sum(numbers is None for _, numbers in found))
            for feature, found in told.items()
        }

    def tokens_to_read(self, explanation: str, pieces: Sequence[Piece], prompts: Prompts) -> int:
        """Tokens of the prompts of some pieces."""
        asked = (simulation_prompt(explanation, piece, self.most, prompts) for piece in pieces)
        return sum(map(self.chat.tokens_of, asked))

    def tokens_to_write(self, piece: Piece) -> int:
        """Tokens of an answer, at most."""
        return self.tokens_a_line * len(piece.tokens)


def simulator_of(chat: Chat) -> Simulator:
    """What foretells activations by a chat model: of one that runs here its probabilities.

    Raises:
        ValueError: If its tokenizer has no token for each number.
    """
    if not isinstance(chat, LocalChat):
        return Simulator(chat, _MOST, _TOKENS_A_LINE)
    local = LocalSimulator(chat)
    return Simulator(local, local.most, 0)


def pieces_of(positives: Sequence[Example], windows: Sequence[list[int]], texts: TokenTexts) -> list[Piece]:
    """The pieces on which one feature is simulated: examples on which it fires, then windows in which it does not.

    None where there are too few of a kind for a score, as nothing needs to be asked then.
    """
    if min(len(positives), len(windows)) < FEWEST_OF_A_KIND:
        return []
    firing = [Piece(texts(example.token_ids), list(example.activations)) for example in positives]
    return firing + [Piece(texts(window), [0.0] * len(window)) for window in windows]


def simulation_prompt(explanation: str, piece: Piece, most: int, prompts: Prompts) -> Conversation:
    """Asks for a number for each token; a token is one line.

    Raises:
        ValueError: If the template's beginning of the answer is not a line with `unknown` behind a tab for each token.
    """
    tokens = [_in_a_line(token) for token in piece.tokens]
    asked = prompts.render("simulation", explanation=explanation, tokens=tokens, most=most)
    if asked[-1]["role"] != "assistant" or _tokens_in(asked) != [token.strip() for token in tokens]:
        raise ValueError(
            "the prompt simulation.jinja needs a block 'assistant' with a line for each token: it, a tab, unknown."
        )
    return asked


def _tokens_in(asked: Conversation) -> list[str]:
    """The tokens for which a prompt's beginning of the answer has a line, without blanks around them."""
    return [part.rpartition("\n")[2].strip() for part in asked[-1]["content"].split(_UNKNOWN)[:-1]]


def _in_a_line(token: str) -> str:
    """A token that can be seen and does not break a line."""
    told = token.translate(_SIGNS)
    return told if told.strip() else "␣" * len(told) or "…"


def foretold_in(answer: str, tokens: Sequence[str], most: int) -> list[float] | None:
    """The numbers of an answer: of its one run of lines that have each token in turn, a tab or blanks, and a number.

    What stands around these lines is not read: a sentence, a fence of code, what a model thought.

    Args:
        answer: What a model wrote.
        tokens: The texts of the tokens.
        most: The largest number.

    Returns:
        A number for each token. None where there are no such lines, or several runs of them. None too where the list
        goes on with other tokens, or a number is too large.
    """
    # Not splitlines: a token may hold a character that breaks a line for Python alone.
    lines = [_Line.of(line) for line in answer.split("\n") if line.strip()]
    shown = [_in_a_line(token).strip() for token in tokens]
    starts = [
        start
        for start in range(len(lines) - len(shown) + 1)
        if all(line.is_of(token) for line, token in zip(lines[start:], shown, strict=False))
    ]
    if len(starts) != 1:
        return None
    start, end = starts[0], starts[0] + len(shown)
    found = [float(line.number) for line in lines[start:end]]
    of_others = any(line.has_tab for line in lines[max(start - 1, 0) : start] + lines[end : end + 1])
    return None if of_others or max(found) > most else found


class _Line(NamedTuple):
    """A line of an answer: what is in front of the number at its end, and the number, empty where there is none."""

    front: str
    number: str
    has_tab: bool

    @classmethod
    def of(cls, line: str) -> "_Line":
        parts = line.rsplit(None, 1)
        if len(parts) < 2 or not _NUMBER.fullmatch(parts[1]):
            return cls(line.strip(), "", False)
        between = line.rstrip()[: -len(parts[1])].removeprefix(parts[0])
        return cls(parts[0].strip(), parts[1], "\t" in between)

    def is_of(self, token: str) -> bool:
        """Whether it has a number of this token, which may stand in quotes."""
        quoted = len(self.front) > 2 and self.front[0] == self.front[-1] and self.front[0] in _QUOTES
        return bool(self.number) and (self.front == token or (quoted and self.front[1:-1].strip() == token))


def simulation_score(told: Sequence[tuple[Piece, list[float] | None]]) -> dict[str, Score]:
    """The score of one feature, by its name in `labels.json`.

    Its 95 % interval is a bootstrap over pieces, of each kind as many as there are: tokens of a piece are alike.
    Numbers that are the same everywhere foretell nothing, and have the correlation 0.

    Args:
        told: Every piece with its numbers; None where there were none.

    Returns:
        Nothing where fewer than two pieces of a kind were answered: of one piece an interval has no width.
    """
    sums = {True: [], False: []}
    for piece, numbers in told:
        if numbers is not None:
            sums[max(piece.activations) > 0].append(_sums(numbers, piece.activations))
    firing, silent = (
        torch.stack(found) if found else torch.zeros(0, 6, dtype=torch.float64) for found in sums.values()
    )
    if min(len(firing), len(silent)) < FEWEST_OF_A_KIND:
        return {}
    drawn = torch.Generator().manual_seed(0)
    again = sum(
        found[torch.randint(len(found), (_N_RESAMPLES, len(found)), generator=drawn)].sum(1)
        for found in (firing, silent)
    )
    assert isinstance(again, Tensor)
    low, high = _correlation(again).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = float(_correlation((firing.sum(0) + silent.sum(0))[None])[0])
    unanswered = len(told) - len(firing) - len(silent)
    return {SIMULATION: Score(value, low, high, len(firing), len(silent), unanswered)}


def _sums(numbers: Sequence[float], activations: Sequence[float]) -> Tensor:
    """(6,): what a correlation is made of, which adds up over pieces."""
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (numbers, activations))
    return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(1)


def _correlation(sums: Tensor) -> Tensor:
    """(m,): Pearson's, of (m, 6); 0 where one of both is constant."""
    n, x, y, xx, yy, xy = sums.unbind(1)
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    varies = (spread_x > 1e-12 * n * xx) & (spread_y > 1e-12 * n * yy)
    return torch.where(varies, (n * xy - x * y) / (spread_x * spread_y).clamp(min=1e-300).sqrt(), 0.0).clamp(-1, 1)


class LocalSimulator:
    """Foretells activations by the probabilities of a model that runs here.

    A number is the expected value over the tokens of the numbers, of which one follows the tab behind each token.

    Args:
        chat: The model.

    Attributes:
        most: 10, or 9 where the tokenizer writes 10 as two tokens.

    Raises:
        ValueError: If its tokenizer has no token for each number.
    """

    def __init__(self, chat: LocalChat):
        self.name, self.at_once = chat.name, chat.at_once
        self._chat = chat
        self._numbers = _number_tokens(chat.tokenizer, chat.name)
        self.most = len(self._numbers) - 1
        self._keeps_some = "logits_to_keep" in inspect.signature(chat.model.forward).parameters

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """A line with a number for each token, in one pass: nothing is written token by token."""
        read = [self._ids(conversation) for conversation in conversations]
        self._chat.refuse_long(max((len(ids) for ids, _ in read), default=0))
        order = sorted(range(len(read)), key=lambda number: -len(read[number][0]))
        for first in range(0, len(order), self.at_once):
            numbers = order[first : first + self.at_once]
            for number, values in zip(numbers, self._expected([read[number] for number in numbers]), strict=True):
                tokens = _tokens_in(conversations[number])
                yield number, "\n".join(f"{token}\t{x:.4f}" for token, x in zip(tokens, values.tolist(), strict=True))

    def tokens_of(self, conversation: Conversation) -> int:
        """How many tokens the model reads."""
        return len(self._ids(conversation)[0])

    def _ids(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Token ids, and the places of the tabs behind which a number comes."""
        n_lines = conversation[-1]["content"].count(_UNKNOWN)
        ids: list[int] = []
        places: list[int] = []
        # What is behind the last tab tells the model nothing, and is left out.
        for part in self._chat.rendered(conversation).rsplit(_UNKNOWN, n_lines)[:-1]:
            if places:
                ids += self._encode("unknown")
            ids += self._encode(f"{part}\t")
            places.append(len(ids) - 1)
        return ids, places

    @torch.no_grad()
    def _expected(self, read: Sequence[tuple[list[int], list[int]]]) -> list[Tensor]:
        """The numbers of some prompts, (lines,) each. Padding is behind a prompt, where nothing looks at it."""
        model = self._chat.model
        width = max(len(ids) for ids, _ in read)
        pad = self._chat.tokenizer.pad_token_id
        tokens = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in read])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in read])
        first = min(places[0] for _, places in read) if self._keeps_some else 0
        kept = {"logits_to_keep": width - first} if self._keeps_some else {}
        device = input_device(model)
        output = model(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False, **kept)
        ids, values = torch.tensor(self._numbers), torch.arange(self.most + 1, dtype=torch.float32)
        found = []
        for row, (_, places) in enumerate(read):
            here = torch.tensor(places, device=output.logits.device) - first
            logits = output.logits[row, here][:, ids.to(here.device)].float().cpu()
            found.append(logits.softmax(1) @ values)
        return found

    def _encode(self, text: str) -> list[int]:
        return self._chat.tokenizer.encode(text, add_special_tokens=False)


def _number_tokens(tokenizer: "PreTrainedTokenizerBase", name: str) -> list[int]:
    """The tokens of 0 to 10 behind a tab, or of 0 to 9."""
    front = tokenizer.encode("\t", add_special_tokens=False)
    found: list[int] = []
    for number in range(_MOST + 1):
        ids = tokenizer.encode(f"\t{number}", add_special_tokens=False)
        if ids[:-1] != front:
            break
        found.append(ids[-1])
    if len(found) < _MOST:
        raise ValueError(
            f"the tokenizer of {name} has no token for {len(found)} behind a tab, by which activations are foretold: "
            "leave the simulation score out, or ask a server (--endpoint URL)."
        )
    return found
