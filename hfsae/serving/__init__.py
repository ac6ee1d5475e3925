"""A page of one's own machine in which a real model runs: type a text, see its features, steer with sliders, trace.

`Playground` answers the page's three questions. `local_server` serves it on 127.0.0.1, to pages of its own alone.
"""

from hfsae.serving.local_server import local_server
from hfsae.serving.playground import Limits, Playground, ServedSAE

__all__ = ["Limits", "Playground", "ServedSAE", "local_server"]
