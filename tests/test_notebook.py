import subprocess
import sys
from xml.etree import ElementTree

import pytest

from hfsae.notebook import html_table


def test_a_table_holds_its_cells_and_escapes_them():
    root = ElementTree.fromstring(html_table([["a<b", 1], ["c", None]], header=["x & y", ""], caption="<i>", note="n"))
    assert [cell.text for cell in root.iter("th")] == ["x & y", None]
    assert [cell.text for cell in root.iter("td")] == ["a<b", "1", "c", "None"]
    assert [root[0].text, root[-1].text] == ["<i>", "n"]


def test_without_a_header_the_first_cell_is_the_title_of_its_row():
    root = ElementTree.fromstring(html_table([["k", 3], ["d", 4]]))
    assert [cell.text for cell in root.iter("th")] == ["k", "d"]
    assert [cell.text for cell in root.iter("td")] == ["3", "4"]


COMPLETE = """
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_cell("from hfsae import SAE, TopKSAEConfig")
shell.run_cell("sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4))")
shell.Completer.use_jedi = False
with provisionalcompleter():
    for line in ("sae.", "sae.config."):
        print(*(found.text.strip(".") for found in shell.Completer.completions(line, len(line))))
"""


def test_a_notebook_completes_what_an_sae_is_for():
    pytest.importorskip("IPython")
    run = subprocess.run([sys.executable, "-c", COMPLETE], capture_output=True, text=True, check=True, timeout=300)
    of_sae, of_config = (set(line.split()) for line in run.stdout.splitlines())
    assert {"encode", "attach", "W_dec", "to"} <= of_sae and not {"add_adapter", "tp_plan", "loss_type"} & of_sae
    assert {"k", "hook_point", "summary"} <= of_config and not {"rope_scaling", "id2label"} & of_config
