"""The versions that records name."""

import sys
from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """The version of a package that is imported: its own word where it was never installed, as from a source tree.

    hfsae always tells its own: what is installed beside a source tree is another version.

    Example:
        >>> version_of("hfsae") == __import__("hfsae").__version__
        True
    """
    own = str(getattr(sys.modules.get(package), "__version__", "unknown"))
    if package == "hfsae":
        return own
    try:
        return version(package)
    except PackageNotFoundError:
        return own
