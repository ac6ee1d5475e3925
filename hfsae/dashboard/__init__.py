"""The dashboard: one page on which the features of an SAE are searched, read and labelled, without a network.

    write_dashboard(collection, tokenizer, "dashboard.html")

or, from a saved SAE alone, `make_dashboard("runs/tiny")`, which is `hfsae dashboard runs/tiny`.
"""

from hfsae.analysis.prompt_page import read_prompts
from hfsae.dashboard.from_saved import ensure_dashboard, gather, make_dashboard
from hfsae.dashboard.page_contents import Compared, InSource
from hfsae.dashboard.space import write_space
from hfsae.dashboard.write import write_dashboard
from hfsae.label_file import read_labels, write_labels

__all__ = [
    "Compared",
    "InSource",
    "ensure_dashboard",
    "gather",
    "make_dashboard",
    "read_labels",
    "read_prompts",
    "write_dashboard",
    "write_labels",
    "write_space",
]
