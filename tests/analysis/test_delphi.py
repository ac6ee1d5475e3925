import json

import pytest
import torch
from safetensors.torch import load_file

from hfsae.analysis import export_delphi
from tests.analysis.tiny import CONTEXT, N_FEATURES, setting, texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("delphi")
    return export_delphi(*setting(), texts(), target, n_splits=3, batch_size=5, disable_tqdm=True)


def test_files_hold_a_range_of_features_and_together_every_activation(folder):
    sae, model, _ = setting()
    assert folder.name == "transformer.h.1"
    assert {path.name for path in folder.iterdir()} == {
        "0_12.safetensors",
        "13_25.safetensors",
        "26_39.safetensors",
        "config.json",
    }
    found = None
    for path in sorted(folder.glob("*.safetensors")):
        start = int(path.stem.split("_")[0])
        split = load_file(path)
        assert split["locations"].dtype == torch.uint16 and split["activations"].dtype == torch.float16
        rows, positions, features = split["locations"].long().T
        if found is None:
            tokens = split["tokens"]
            found = torch.zeros(*tokens.shape, N_FEATURES)
        assert torch.equal(split["tokens"], tokens) and features.min() >= 0
        found[rows, positions, features + start] = split["activations"].float()
    with torch.no_grad():
        hidden = model(tokens, output_hidden_states=True).hidden_states[2]
        expected = sae.encode(hidden)
    expected[:, 0] = 0
    expected[tokens == 0] = 0  # the EOS between documents
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


def test_the_config_says_how_the_text_was_cut(folder):
    config = json.loads((folder / "config.json").read_text())
    n_rows = len(load_file(folder / "0_12.safetensors")["tokens"])
    assert config["ctx_len"] == config["cache_ctx_len"] == CONTEXT
    assert config["n_tokens"] == n_rows * CONTEXT and config["n_splits"] == 3


def test_rows_end_where_enough_tokens_were_read(tmp_path):
    folder = export_delphi(*setting(), texts(), tmp_path, max_tokens=3 * CONTEXT + 5, n_splits=1, disable_tqdm=True)
    assert load_file(folder / "0_39.safetensors")["tokens"].shape == (3, CONTEXT)


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="do not fill one row"):
        export_delphi(*setting(), ["w1 w2"], tmp_path, disable_tqdm=True)
    with pytest.raises(ValueError, match="n_splits is 0"):
        export_delphi(*setting(), texts(), tmp_path, n_splits=0)
    assert not list(tmp_path.iterdir())
