"""Training on real small language models of other families, where they are at hand.

They are looked for in the folder that HFSAE_ASSETS names, or in `shared/assets` beside the repository.
"""

import os
from pathlib import Path

import pytest

from hfsae import SAETrainer, SAETrainingArguments
from hfsae.architectures import architectures, config_class_of

ASSETS = Path(os.environ.get("HFSAE_ASSETS", Path(__file__).parents[2] / "shared" / "assets"))
K = 32

MODELS = {
    "stories260K-llama": {"dataset_name": "tinystories_1000.jsonl", "hook_point": "resid_post.2", "d_in": 64},
    "babyllama-char105-llama": {"dataset_name": "tinystories_1000.jsonl", "hook_point": "resid_post.2", "d_in": 128},
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_beats_its_untrained_self_and_pca_on_a_real_model(name, tmp_path):
    if not (ASSETS / "models" / name).is_dir():
        pytest.skip(f"the language model {name} is not in {ASSETS}; set HFSAE_ASSETS to a folder that has it")
    options = dict(MODELS[name])
    d_in = options.pop("d_in")
    args = SAETrainingArguments(
        **{**options, "dataset_name": str(ASSETS / "text" / options["dataset_name"])},
        model_name_or_path=str(ASSETS / "models" / name),
        output_dir=str(tmp_path),
        k=K,
        training_tokens=1_000_000,
        eval_tokens=20_000,
        save_steps=0,
        disable_tqdm=True,
    )
    saes = {}
    for architecture in architectures():
        config_class = config_class_of(architecture)
        size = {"k": K} if "k" in config_class.__dataclass_fields__ else {}
        saes[architecture] = config_class(d_in=d_in, expansion_factor=16, **size)
    output = SAETrainer(args=args, saes=saes).train()
    for architecture, metrics in output.metrics.items():
        untrained, pca = metrics["baselines"]["untrained"], metrics["baselines"]["pca"]
        assert metrics["l0"] == pytest.approx(K, rel=0.1), architecture
        assert metrics["explained_variance"] > untrained["explained_variance"] + 0.03, architecture
        assert metrics["explained_variance"] > pca["explained_variance"] + 0.03, architecture
        share = 0.35 if "topk" in architecture else 0.5
        assert 1 - metrics["loss_recovered"] <= share * (1 - untrained["loss_recovered"]), architecture
