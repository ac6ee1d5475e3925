"""`label_features`: a language model explains features and is held to what it says."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis import Feature, FeatureCollection, TokenTexts
from hfsae.analysis.document_sequences import Documents
from hfsae.analysis.weights import chosen_features
from hfsae.identity import Identity
from hfsae.label_file import SIMULATION, Label, Score
from hfsae.meaning.chat import Chat, Conversation
from hfsae.meaning.counterexamples import Counterexamples
from hfsae.meaning.explaining import explanation_in, explanation_prompt, shown_and_held_out, spread
from hfsae.meaning.journal import Journal
from hfsae.meaning.label_prompts import Prompts
from hfsae.meaning.scoring import (
    KINDS,
    Group,
    Kind,
    Trial,
    batches,
    mean_over_features,
    scores_of,
    scoring_prompt,
    trials,
    verdicts_in,
)
from hfsae.meaning.simulation import FEWEST_OF_A_KIND, Piece, Simulator, pieces_of, simulator_of
from hfsae.modeling import SAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXPLANATION_TOKENS = 60
# "[1, 0, 1]", and what small models say before it.
_VERDICT_TOKENS = 40
# About as long as an explanation, to tell the cost of what is asked about one.
_LIKE_AN_EXPLANATION = "a phrase of about a dozen words in plain English"
# Features of which prompts are written out to tell the cost of all.
_ESTIMATED_ON = 16
# With fewer examples nothing is explained: two are shown and one is held out.
_FEWEST = 3


@dataclass(frozen=True)
class Cost:
    """What labelling will ask of the model, at most.

    Attributes:
        features: How many are labelled.
        requests: How many conversations.
        prompt_tokens: Tokens to read, about; of a server's model a quarter of the characters.
        answer_tokens: Tokens to write, at most.
    """

    features: int
    requests: int
    prompt_tokens: int
    answer_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.features:,} features: at most {self.requests:,} requests, about {self.prompt_tokens:,} tokens to "
            f"read and at most {self.answer_tokens:,} to write"
        )


@dataclass
class Labelled:
    """What came out.

    Attributes:
        labels: Labels with scores, by feature.
        nonsense: Features of which the model said nothing that is an explanation.
        too_few: Features with fewer than three examples, which were not asked about.
        answers: Answers that the model gave; others were known from an earlier run.
        unanswered: Pieces of text of which it gave no verdict that could be read.
        unsimulated: Labelled features without a simulation score that was asked for, as pieces were too few.
    """

    labels: dict[int, Label] = field(default_factory=dict)
    nonsense: list[int] = field(default_factory=list)
    too_few: list[int] = field(default_factory=list)
    answers: int = 0
    unanswered: int = 0
    unsimulated: list[int] = field(default_factory=list)

    def mean_scores(self) -> dict[str, tuple[float, float, float]]:
        """The mean of each score over the features that have it, with the ends of its 95 % interval."""
        names = sorted({name for label in self.labels.values() for name in label.scores})
        by_name = {name: [one.scores[name] for one in self.labels.values() if name in one.scores] for name in names}
        return {name: mean_over_features([score.accuracy for score in found]) for name, found in by_name.items()}


class Labeller:
    """Asks a language model what features mean, and scores what it says.

    Args:
        collection: The features.
        counterexamples: Pieces of text on which they do not fire.
        tokenizer: The tokenizer of the SAE's language model.
        chat: The model that explains and judges.
        prompts: The templates.
        n_shown: Examples that a feature is explained from.
        n_scored: Pieces of each kind that an explanation is scored on; 0 for no scores.
        shown_at_once: Pieces in one request for verdicts.
        simulator: Foretells activations; None: nothing does.
        n_simulated: Pieces of each of two kinds on which activations are foretold.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        collection: FeatureCollection,
        counterexamples: Counterexamples,
        tokenizer: "PreTrainedTokenizerBase",
        chat: Chat,
        prompts: Prompts,
        *,
        n_shown: int = 20,
        n_scored: int = 15,
        shown_at_once: int = 5,
        simulator: Simulator | None = None,
        n_simulated: int = 0,
        seed: int = 0,
    ):
        refuse_impossible(n_shown, n_scored, shown_at_once, n_simulated)
        self._collection, self._counterexamples, self._chat = collection, counterexamples, chat
        self._texts, self._prompts = TokenTexts(tokenizer), prompts
        self._n_shown, self._n_scored, self._shown_at_once, self._seed = n_shown, n_scored, shown_at_once, seed
        self._simulator, self._n_simulated = simulator, n_simulated
        self._digest = prompts.digest if simulator is None else prompts.digest_with_simulation

    def explainable(self, features: Sequence[int]) -> tuple[list[int], list[int]]:
        """Those with examples enough, and the others."""
        enough = [feature for feature in features if self._has_enough(self._collection.of(feature))]
        return enough, sorted(set(features) - set(enough))

    def cost(self, features: Sequence[int]) -> Cost:
        """What labelling these features will ask; of many the prompts of some are counted.

        Args:
            features: The features to label.
        """
        tried = random.Random(self._seed).sample(list(features), min(_ESTIMATED_ON, len(features)))
        requests = prompt_tokens = answer_tokens = 0
        for feature in tried:
            conversations = [(self._explain(feature), _EXPLANATION_TOKENS)]
            conversations += [
                (scoring_prompt(kind, _LIKE_AN_EXPLANATION, shown, self._prompts), size)
                for kind, found in self._trials(feature).items()
                for shown, size in ((shown, _VERDICT_TOKENS) for shown in batches(found, self._shown_at_once))
            ]
            requests += len(conversations)
            prompt_tokens += sum(self._chat.tokens_of(conversation) for conversation, _ in conversations)
            answer_tokens += sum(size for _, size in conversations)
            if self._simulator is not None:
                pieces = self._pieces(feature)
                requests += len(pieces)
                prompt_tokens += self._simulator.tokens_to_read(_LIKE_AN_EXPLANATION, pieces, self._prompts)
                answer_tokens += sum(map(self._simulator.tokens_to_write, pieces))
        scale = len(features) / max(len(tried), 1)
        return Cost(len(features), *(round(scale * total) for total in (requests, prompt_tokens, answer_tokens)))

    def label(self, features: Sequence[int]) -> Iterator[tuple[int, Label | None, int]]:
        """Labels features, several at once.

        Args:
            features: Those with examples enough.

        Yields:
            A feature, its label (None where the model said nonsense), and of how many pieces there was no verdict.
        """
        for start in range(0, len(features), self._chat.at_once):
            group = features[start : start + self._chat.at_once]
            explanations = self._explanations(group)
            told = {feature: text for feature, text in explanations.items() if text is not None}
            scores, simulated = self._scores(told), self._simulated(told)
            for feature in group:
                text = explanations[feature]
                if text is None:
                    yield feature, None, 0
                else:
                    found, unanswered = scores[feature]
                    others, without = simulated[feature]
                    yield feature, Label(text, self._chat.name, self._digest, found | others), unanswered + without

    def _explanations(self, features: Sequence[int]) -> dict[int, str | None]:
        asked = [self._explain(feature) for feature in features]
        answers = dict(self._chat.answers(asked, _EXPLANATION_TOKENS))
        return {feature: explanation_in(answers[i], asked[i]) for i, feature in enumerate(features)}

    def _scores(self, explanations: dict[int, str]) -> dict[int, tuple[dict[str, Score], int]]:
        """The scores of each feature, and of how many pieces there was no verdict."""
        asked: list[tuple[int, Kind, Sequence[Trial], Conversation]] = [
            (feature, kind, shown, scoring_prompt(kind, text, shown, self._prompts))
            for feature, text in explanations.items()
            for kind, found in self._trials(feature).items()
            for shown in batches(found, self._shown_at_once)
        ]
        answers = dict(self._chat.answers([conversation for *_, conversation in asked], _VERDICT_TOKENS))
        told: dict[tuple[int, Kind], list[tuple[Trial, bool | None]]] = {}
        for i, (feature, kind, shown, _) in enumerate(asked):
            verdicts = verdicts_in(answers[i], len(shown)) or [None] * len(shown)
            told.setdefault((feature, kind), []).extend(zip(shown, verdicts, strict=True))
        scores: dict[int, tuple[dict[str, Score], int]] = {}
        for feature in explanations:
            mine: dict[Kind, list[tuple[Trial, bool | None]]] = {kind: told.get((feature, kind), []) for kind in KINDS}
            found = {name: score for kind, pairs in mine.items() for name, score in scores_of(kind, pairs).items()}
            scores[feature] = found, sum(verdict is None for pairs in mine.values() for _, verdict in pairs)
        return scores

    def _simulated(self, explanations: dict[int, str]) -> dict[int, tuple[dict[str, Score], int]]:
        """The simulation score of each feature, and of how many pieces there were no numbers."""
        if self._simulator is None:
            return {feature: ({}, 0) for feature in explanations}
        asked = {feature: (text, self._pieces(feature)) for feature, text in explanations.items()}
        return self._simulator.scores(asked, self._prompts)

    def _pieces(self, feature: int) -> list[Piece]:
        """Those whose activations are foretold, the same in every run."""
        _, held_out = shown_and_held_out(self._collection.of(feature), self._n_shown)
        chosen = random.Random(f"{self._seed} {feature} simulation")
        windows = self._counterexamples.anywhere(feature, self._n_simulated, chosen)
        return pieces_of(spread(held_out, self._n_simulated), windows, self._texts)

    def _has_enough(self, feature: Feature) -> bool:
        shown, held_out = shown_and_held_out(feature, self._n_shown)
        return len(shown) + len(held_out) >= _FEWEST

    def _explain(self, feature: int) -> Conversation:
        about = self._collection.of(feature)
        shown, _ = shown_and_held_out(about, self._n_shown)
        return explanation_prompt(about, shown, self._texts, self._prompts)

    def _trials(self, feature: int) -> dict[Kind, list[Trial]]:
        """The same pieces for both kinds of question, and in every run."""
        if not self._n_scored:
            return {}
        about = self._collection.of(feature)
        _, held_out = shown_and_held_out(about, self._n_shown)
        positives = spread(held_out, self._n_scored)
        chosen = random.Random(f"{self._seed} {feature}")
        near = [neighbour.feature for neighbour in about.decoder_neighbours]
        negatives: dict[Group, list[list[int]]] = {
            "random": self._counterexamples.anywhere(feature, self._n_scored, chosen),
            "neighbouring": self._counterexamples.beside_neighbours(feature, near, self._n_scored, chosen),
        }
        return {kind: trials(kind, positives, negatives, self._texts, chosen) for kind in KINDS}


def label_features(
    sae: SAE,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    documents: Documents,
    chat: Chat,
    *,
    collection: FeatureCollection,
    features: Sequence[int] | Tensor | None = None,
    n_shown: int = 20,
    n_scored: int = 15,
    shown_at_once: int = 5,
    n_simulated: int = 0,
    counterexample_tokens: int = 50_000,
    prompts: Prompts | str | Path | None = None,
    journal: str | Path | None = None,
    text_column: str | None = None,
    seed: int = 0,
    before: Callable[[Cost], None] | None = None,
    after_each: Callable[[int, Label | None], None] | None = None,
    disable_tqdm: bool = False,
) -> Labelled:
    """Lets a language model explain features from their examples, and scores what it says by detection and fuzzing.

    With `n_simulated` it is also scored by simulation. Examples that are scored were not shown to it. The same
    arguments ask the same questions, so a run that ended in the middle goes on where its journal is.

    Args:
        sae: The SAE.
        model: The language model that it reads.
        tokenizer: Its tokenizer.
        documents: Text for counterexamples: a list of texts, or a dataset.
        chat: The model that explains and judges: a `LocalChat`, an `EndpointChat`, or one of your own.
        collection: What `collect_features` found of this SAE.
        features: Which ones; None for all that fire.
        n_shown: Examples that a feature is explained from: half of them the strongest, half across its range.
        n_scored: Pieces of text of each of three kinds that an explanation is scored on. They are pieces where the
            feature fires, random ones, and pieces where a feature with a near decoder row fires. 0 for no scores.
        shown_at_once: Pieces in one request for verdicts.
        n_simulated: Pieces of each of two kinds whose activations the model foretells, for the simulation score. They
            are pieces where the feature fires, and random ones. 0 for none; a score needs two of each kind.
        counterexample_tokens: Tokens of `documents` to read.
        prompts: Templates, or a folder with templates that replace the package's.
        journal: A file in which answers are kept until the end; None keeps none.
        text_column: The column of documents; None finds it.
        seed: Of what is drawn.
        before: Is told the cost before anything is asked; whoever raises in it stops the run.
        after_each: Is told each feature with its label, or None where the model said nonsense.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        The labels with their scores, and what there are none of.

    Raises:
        ValueError: If the collection is of another SAE, a feature was not collected or is named twice, or a number is
            impossible.
        OSError: If the model cannot be reached. What was answered is in the journal.

    Example:
        >>> chat = LocalChat("HuggingFaceTB/SmolLM2-1.7B-Instruct")  # doctest: +SKIP
        >>> run = label_features(sae, model, tokenizer, text, chat, collection=collection)  # doctest: +SKIP
        >>> run.labels[17].text, str(run.labels[17].scores["detection_random"])  # doctest: +SKIP
        ('the word "is" before "not"', '0.87 (0.70 to 0.94)')
    """
    if (unlike := Identity.of(sae).unlike(vars(collection.about))) is not None:
        raise ValueError(f"these features were collected of {unlike}: run collect_features on this SAE.")
    chosen = _chosen(sae, collection, features)
    refuse_impossible(n_shown, n_scored, shown_at_once, n_simulated)
    simulator = simulator_of(chat) if n_simulated else None
    about = collection.about
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.load(prompts)
    width = min(about.before + 1 + about.after, about.context_length)
    read = Counterexamples.read(
        sae,
        model,
        tokenizer,
        documents,
        width=width,
        max_tokens=counterexample_tokens if n_scored or n_simulated else 1,
        context_length=about.context_length,
        text_column=text_column,
        disable_tqdm=disable_tqdm,
    )
    kept = Journal(chat, None if journal is None else Path(journal))
    if simulator is not None:
        simulator = simulator._replace(chat=kept.beside(simulator.chat, SIMULATION))
    labeller = Labeller(
        *(collection, read, tokenizer, kept, prompts),
        n_shown=n_shown,
        n_scored=n_scored,
        shown_at_once=shown_at_once,
        simulator=simulator,
        n_simulated=n_simulated,
        seed=seed,
    )
    run = Labelled()
    explainable, run.too_few = labeller.explainable(chosen)
    if before is not None:
        before(labeller.cost(explainable))
    try:
        for feature, label, unanswered in labeller.label(explainable):
            run.unanswered += unanswered
            if label is None:
                run.nonsense.append(feature)
            else:
                run.labels[feature] = label
                if simulator is not None and SIMULATION not in label.scores:
                    run.unsimulated.append(feature)
            if after_each is not None:
                after_each(feature, label)
    finally:
        kept.close()
    kept.finish()
    return replace(run, answers=kept.asked)


def refuse_impossible(n_shown: int = 20, n_scored: int = 15, shown_at_once: int = 5, n_simulated: int = 0) -> None:
    """Refuses numbers with which `label_features` can do nothing, by a ValueError."""
    if n_shown < 2 or n_scored < 0 or shown_at_once < 1 or n_simulated < 0 or 0 < n_simulated < FEWEST_OF_A_KIND:
        raise ValueError(
            f"n_shown is {n_shown}, n_scored {n_scored}, shown_at_once {shown_at_once}, n_simulated {n_simulated}; "
            f"expected at least 2, 0, 1, and 0 or at least {FEWEST_OF_A_KIND}."
        )


def _chosen(sae: SAE, collection: FeatureCollection, features: Sequence[int] | Tensor | None) -> list[int]:
    """Features of the collection: those asked for, or all that fire."""
    if features is None:
        return collection.features[collection.statistics.tokens_firing[collection.features] > 0].tolist()
    asked = chosen_features(sae, features, once=True)
    if missing := sorted(set(asked.tolist()) - set(collection.features.tolist())):
        raise ValueError(f"feature {missing[0]} was not collected; the collection has {len(collection):,} features.")
    never = collection.statistics.tokens_firing[asked] == 0
    if bool(never.any()):
        silent = ", ".join(map(str, torch.as_tensor(asked)[never].tolist()[:5]))
        raise ValueError(
            f"features that never fire have no examples to explain: {silent} (over {collection.about.n_tokens:,} "
            "tokens)."
        )
    return asked.tolist()
