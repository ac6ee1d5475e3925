"""The text of a run, in three disjoint parts: what is trained on, calibrated on and measured on."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.data import TextSource, stdlib_digest
from hfsae.data.document_column import refuse_no_dataset

_STDLIB = "python-stdlib"


@dataclass
class Texts:
    """Three disjoint parts of text, and what they are called.

    Args:
        train: What is trained on.
        calibration: For thresholds, the mean activation and baselines; None where it is off.
        evaluation: What is measured on; None where evaluation is off.
        trained: Names the text that is trained on, all its parts together.
        measured: Names the text that is measured on.
        digest: Of the training text, where it is made on the spot.
    """

    train: Any
    calibration: Any
    evaluation: Any
    trained: TextSource
    measured: TextSource
    digest: str | None = None

    @property
    def commit(self) -> str | None:
        """The commit on the Hub of what is trained on, where it is known."""
        return self.trained.dataset_revision

    def protocol(self, args: SAETrainingArguments) -> dict[str, Any]:
        """Which text metrics come from, so that it is found again."""
        calibration = {**self.trained.named("calibration").recorded(), "max_tokens": args.tokens_for_calibration}
        return {
            **self.measured.recorded(),
            "max_tokens": args.eval_tokens,
            "calibration": calibration if self.trained.dataset and self.calibration is not None else None,
        }


def load_texts(args: SAETrainingArguments, train_dataset: Any, eval_dataset: Any) -> Texts:
    """The text of a run: datasets given as objects, or those the arguments name.

    Documents are dealt to the parts by a hash of their content, so equal documents never stand on both sides.

    Raises:
        ValueError: If no dataset is given or named.
        TypeError: If what is given is neither a dataset nor token ids.
    """
    trained, digest = TextSource.of_arguments(vars(args)), None
    if train_dataset is None:
        if trained.dataset is None:
            raise ValueError("no text to train on: give dataset_name (a Hub dataset, a file, 'python-stdlib').")
        trained = trained.resolved()
        train_dataset = trained.load()
        digest = stdlib_digest(args.dataset_split) if trained.dataset == _STDLIB else None  # type: ignore[arg-type]
    measured = _measured(args, trained, given=eval_dataset is not None)
    if eval_dataset is None and args.eval_dataset_name is not None:
        measured = measured.resolved()
        eval_dataset = measured.load()
    if eval_dataset is not None:
        refuse_no_text(eval_dataset, "eval_dataset")
    refuse_no_text(train_dataset, "train_dataset")
    if isinstance(train_dataset, Tensor):
        train, calibration, evaluation = _deal_tensor(train_dataset, trained.shares)
    else:
        train = trained.named("train").documents(train_dataset)
        wanted = args.tokens_for_calibration
        calibration = trained.named("calibration").documents(train_dataset) if wanted else None
        own = args.eval_tokens and eval_dataset is None
        evaluation = trained.named("evaluation").documents(train_dataset) if own else None
    evaluation = evaluation if eval_dataset is None else eval_dataset
    calibration = calibration if args.tokens_for_calibration else None
    return Texts(train, calibration, evaluation, trained, measured, digest)


def refuse_no_text(text: object, called: str) -> None:
    """Refuses what is neither a dataset nor a tensor of token ids (rows, length).

    Args:
        text: What is given.
        called: What the message calls it.

    Raises:
        TypeError: As `refuse_no_dataset`.
    """
    if not isinstance(text, Tensor):
        refuse_no_dataset(text, called)


def _measured(args: SAETrainingArguments, trained: TextSource, *, given: bool) -> TextSource:
    """What is measured on: a text of its own, by name or given as an object, or documents that are held out."""
    if args.eval_dataset_name is None and not given:
        return trained.named("evaluation")
    return TextSource(
        dataset=args.eval_dataset_name,
        dataset_config=args.eval_dataset_config,
        split=args.eval_dataset_split,
        **trained.reading,
    )


def _deal_tensor(ids: Tensor, shares: dict[str, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (rows, length) have no documents to hash: the last rows are held out."""
    # A share of 0.02 of 50 rows is one, whatever the last bit of the product says.
    calibration, evaluation = (max(1, int(len(ids) * shares[part] + 1e-6)) for part in ("calibration", "evaluation"))
    rest = len(ids) - calibration - evaluation
    if rest < 1:
        raise ValueError(f"{len(ids)} rows of token ids are too few to hold some out for calibration and evaluation.")
    return ids[:rest], ids[rest : rest + calibration], ids[rest + calibration :]
