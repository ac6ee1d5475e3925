"""Other projects' formats: recognised by their files, read into our own classes, and where it makes sense written.

`formats.py` is the table of what is read; each format is one small module of that name. A module offers
`recognises(source)` and `read(source)`, which returns a `ConvertedSAE`: an architecture's name, config fields and
stored tensors. Nothing is fetched but the files that hold the SAE.
"""

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.export import export_formats, export_sae
from hfsae.interop.formats import load_foreign
from hfsae.interop.saebench import SAEBenchView
from hfsae.interop.source import Source, renamed

__all__ = ["ConvertedSAE", "SAEBenchView", "Source", "export_formats", "export_sae", "load_foreign", "renamed"]
