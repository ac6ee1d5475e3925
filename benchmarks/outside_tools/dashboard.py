"""Shows an SAE exported to SAELens with sae-dashboard, and reads what `export_neuronpedia` wrote with its client.

    python dashboard.py SAELENS_FOLDER LANGUAGE_MODEL TOKENS NEURONPEDIA_FOLDER OUT UPLOADS URL

TOKENS holds `ids` (rows, length) and `features`, the indices that are shown. Writes OUT/dashboard.html, and
OUT/dashboard.json: for each feature the share of tokens on which it fires and its largest activation.

UPLOADS is a file with what `upload_neuronpedia` sent, a request a line. The client builds its own objects of each,
which check what they are given, and sends them to the server at URL.
"""

import gzip
import json
import sys
from pathlib import Path

from lens import lens_model
from neuronpedia.np_activation import Activation
from neuronpedia.np_explanation import Explanation
from neuronpedia.np_feature import Feature, Logit
from neuronpedia.requests.feature_request import FeatureRequest
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from safetensors.torch import load_file


def main(folder: str, model: str, tokens: str, neuronpedia: str, out: str, uploads: str, url: str) -> None:
    """Runs both."""
    stored = load_file(tokens)
    ids, features = stored["ids"], stored["features"].tolist()
    sae = SAE.load_from_disk(folder)
    hook_name = sae.cfg.metadata.hook_name
    config = SaeVisConfig(hook_point=hook_name, features=features, minibatch_size_tokens=32, verbose=False)
    data = SaeVisRunner(config).run(encoder=sae, model=lens_model(model, HookedSAETransformer), tokens=ids)
    save_feature_centric_vis(data, Path(out) / "dashboard.html")
    statistics = data.feature_stats
    shown = {"density": statistics.frac_nonzero, "maximum": statistics.max, "hook_name": hook_name}
    rows = 0
    for file in sorted(Path(neuronpedia).glob("activations/*.jsonl.gz")):
        with gzip.open(file, "rt") as lines:
            for line in lines:
                Activation.from_np_db_json(json.loads(line))
                rows += 1
    shown["neuronpedia_rows"] = rows
    FeatureRequest.BASE_URL = url
    for line in Path(uploads).read_text().splitlines():
        sent = json.loads(line)
        features = [_feature(row, sent["modelId"], sent["source"]) for row in sent["features"]]
        FeatureRequest(api_key="of nobody").upload_batch(sent["modelId"], sent["source"], features)
    (Path(out) / "dashboard.json").write_text(json.dumps(shown, default=float))


def _feature(row: dict, model_id: str, source: str) -> Feature:
    """The client's object of one feature that was sent."""
    about = {"modelId": model_id, "source": source, "index": row["index"]}
    return Feature(
        **about,
        density=row["density"],
        top_logits=[Logit(**logit) for logit in row["topLogits"]],
        bottom_logits=[Logit(**logit) for logit in row["bottomLogits"]],
        explanations=[
            Explanation(**about, text=one["text"], method=one["methodName"], explainer_model=one["modelName"])
            for one in row["explanations"]
        ],
        activations=[Activation(**about, **one) for one in row["activations"]],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
