"""`TrainOutput`: what `SAETrainer.train` returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState

from hfsae.configuration import SAEConfig
from hfsae.evaluation.report import headlines
from hfsae.modeling import SAE
from hfsae.notebook import html_table
from hfsae.training.setup import TrainingRun


@dataclass
class TrainOutput:
    """What `SAETrainer.train` returns.

    Args:
        saes: The trained SAEs by name, a single one by the name `""`; where they are spread over processes, those of
            this process.
        metrics: What was measured on held-out text, by the same names; empty where evaluation was off.
        log_history: One entry per logged step, as in `transformers.TrainerState`.
        steps: Optimiser steps taken.
        completed: False if the run was interrupted; its last checkpoint is the place to resume from.
        configs: Of all SAEs by name.
        best_checkpoint: The checkpoint of the best `metric_for_best_model`, where one was named.
        together: What was measured with all of a set of transcoders in place, as `evaluate_together` gives it; None
            where the run trained no set.
    """

    saes: dict[str, SAE]
    metrics: dict[str, dict[str, Any]]
    log_history: list[dict[str, float]]
    steps: int
    completed: bool
    configs: dict[str, SAEConfig]
    best_checkpoint: Path | None = None
    together: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        run: TrainingRun,
        state: TrainerState,
        metrics: dict[str, dict[str, Any]],
        together: dict[str, Any] | None,
        best_checkpoint: Path | None,
    ) -> "TrainOutput":
        """What a run that has ended gives back."""
        return cls(
            saes={name: sae.eval() for name, sae in run.saes.items()},
            metrics=metrics,
            log_history=state.log_history,
            steps=state.global_step,
            completed=state.global_step == state.max_steps,
            configs=run.gather({name: sae.config for name, sae in run.saes.items()}),
            best_checkpoint=best_checkpoint,
            together=together,
        )

    def __repr__(self) -> str:
        how = "completed" if self.completed else "interrupted"
        names = ", ".join(name or repr(config) for name, config in self.configs.items())
        return f"TrainOutput({how} after {self.steps:,} steps: {names})"

    def _repr_html_(self) -> str:
        """A row an SAE with the figures that say most."""
        return html_table(
            [[name or "SAE", *headlines(self.metrics.get(name, {})).values()] for name in self.configs],
            header=["", *headlines({})],
            caption=f"{'completed' if self.completed else 'interrupted'} after {self.steps:,} steps",
        )

    @property
    def sae(self) -> SAE:
        """The only SAE of the run.

        Raises:
            ValueError: If there are several.
        """
        if len(self.saes) != 1:
            raise ValueError(f"the run trained {len(self.saes)} SAEs: {', '.join(self.saes)}. Take one from .saes.")
        return next(iter(self.saes.values()))
