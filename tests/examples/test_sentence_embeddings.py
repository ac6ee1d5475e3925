import re

from examples import sentence_embeddings
from hfsae import SAE


def test_an_sae_is_trained_on_embeddings_of_lines_and_finds_lines(tmp_path, capsys):
    options = ["--lines", "2000", "--features", "256", "--passes", "20", "--output_dir", str(tmp_path)]
    sentence_embeddings.main(options)
    shown = capsys.readouterr().out
    explained = float(re.search(r"explained variance on 200 other lines: ([\d.]+)", shown)[1])  # type: ignore[index]
    assert explained > 0.3 and len(re.findall(r"feature \d+, in \d+ lines:", shown)) == 4
    assert SAE.from_pretrained(tmp_path).config.d_in == 128
