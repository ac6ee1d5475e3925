import datasets
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging

from hfsae import SAE, TopKSAEConfig
from hfsae.progress import quietly, token_bar


def shown() -> tuple[bool, bool]:
    return transformers_logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()


def test_bars_of_libraries_come_back_after_a_quiet_part_and_downloads_keep_theirs():
    before, downloads = shown(), are_progress_bars_disabled()
    with quietly():
        assert shown() == (False, False) and are_progress_bars_disabled() == downloads
        with quietly():
            pass
        assert shown() == (False, False)
    assert shown() == before and are_progress_bars_disabled() == downloads


def test_an_sae_is_saved_and_loaded_without_a_bar(tmp_path, capfd):
    SAE.from_config(TopKSAEConfig(d_in=4, n_features=8, k=2)).save_pretrained(tmp_path)
    SAE.from_pretrained(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_bar_counts_tokens_and_leaves_what_was_done_before_out_of_its_rate(capfd):
    with token_bar("reading", 4000, done=1000) as bar:
        bar.update(3000)
        assert bar.format_dict["initial"] == 1000
    assert "reading: 100%" in (err := capfd.readouterr().err) and "4.00k/4.00k" in err and "tokens/s" in err
