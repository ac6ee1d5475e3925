import fcntl
import io
import logging
import os
import pty
import struct
import subprocess
import sys
import termios

import datasets
import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from hfsae import SAE, TopKSAEConfig
from hfsae.progress import LogsAboveBars, quietly, token_bar


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


@pytest.mark.slow
@pytest.mark.parametrize("columns", [0, 100])
def test_a_bar_is_seen_in_a_terminal_that_does_not_know_its_width(columns):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40 if columns else 0, columns, 0, 0))
    code = "from hfsae.progress import token_bar\nwith token_bar('reading', 10) as bar: bar.update(10)"
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    run = subprocess.Popen([sys.executable, "-c", code], stdout=follower, stderr=follower, env=environment)
    assert run.wait(timeout=300) == 0
    assert b"reading: 100%" in os.read(leader, 10_000)


def test_a_log_line_stands_above_a_bar_and_not_in_the_midst_of_it():
    drawn = io.StringIO()
    logger = logging.Logger("one")
    logger.addHandler(LogsAboveBars(drawn))
    with tqdm(total=2, desc="training", file=drawn, mininterval=0, ncols=60) as shown:
        shown.update()
        logger.warning("something to know")
        shown.update()
    lines = drawn.getvalue().split("\n")
    assert any(line.split("\r")[-1] == "something to know" for line in lines)
    assert lines[-2].split("\r")[-1].startswith("training: 100%")
