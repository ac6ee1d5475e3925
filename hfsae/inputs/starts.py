"""What is known of the SAE that training starts from (`init_from`) before its weights are read."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.registry import architecture_name
from hfsae.configuration import SAEConfig
from hfsae.loading import load_config
from hfsae.sae_folders import place_of


class Starts:
    """The SAEs that trainings start from, each looked up once however often it is asked for.

    Example:
        >>> from hfsae import SAETrainingArguments
        >>> from hfsae.inputs.starts import Starts
        >>> Starts().started(SAETrainingArguments(architecture="gated")).architecture
        'gated'
    """

    def __init__(self) -> None:
        self._configs: dict[str, SAEConfig] = {}

    def config(self, init_from: str) -> SAEConfig:
        """The config of the SAE that `init_from` names; of another project's SAE the weights are read too.

        Raises:
            ValueError: If it is no SAE.
            OSError: If there is nothing.
        """
        if init_from not in self._configs:
            place, where = place_of(init_from)
            self._configs[init_from] = load_config(place, fetch_weights=True, **where)
        return self._configs[init_from]

    def started(self, args: SAETrainingArguments) -> SAETrainingArguments:
        """The arguments of one SAE with what the SAE that it starts from keeps: architecture, width, k and place.

        Args:
            args: The arguments; given back as they are where training starts from nothing.

        Returns:
            Arguments without `init_from`: those of such an SAE that starts from nothing.

        Raises:
            ValueError, OSError: As `config`.
        """
        if args.init_from is None:
            return args
        config = self.config(args.init_from)
        kept: dict[str, Any] = {"architecture": architecture_name(config), "n_features": config.n_features}
        given = args.given()
        for name in ("k", "hook_point", "target_hook_point"):
            if name not in given and getattr(config, name, None) is not None:
                kept[name] = getattr(config, name)
        return replace(args, init_from=None, **kept)

    def of_run(
        self, args: SAETrainingArguments, saes: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, SAETrainingArguments]:
        """What `started` gives for each SAE of a run.

        Args:
            args: The run's arguments.
            saes: Of each SAE by name, the arguments that are its own.

        Raises:
            ValueError, OSError: As `config`.
        """
        return {name: self.started(args.of_sae(own)) for name, own in saes.items()}
