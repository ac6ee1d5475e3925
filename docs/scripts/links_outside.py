"""A hook of MkDocs: the site does not hold files outside of docs/, so a link to one becomes the file's name.

In a checkout such links lead to the file. On the site they would lead nowhere.
"""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces links that lead out of docs/; MkDocs calls it for every page.

    Args:
        markdown: Text of the page.
        page: The page, whose `file.src_uri` is its path below docs/.

    Returns:
        The text, in which `[cards](../model_cards/README.md)` is "cards (`model_cards/README.md`)".
    """
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def replaced(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        path = posixpath.normpath(posixpath.join(folder, target))
        if "://" in target or path.startswith("docs/"):
            return link[0]
        return f"{text} (`{path}`)"

    return _LINK.sub(replaced, markdown)
