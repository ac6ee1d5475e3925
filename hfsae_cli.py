"""The command `hfsae` as the console script starts it: with this module loaded, hfsae waits with torch until it must.

`python -m hfsae_cli` is the same, for where the script is not on the path.
"""

import sys


def main() -> int:
    """Runs the command line of the process.

    Returns:
        The exit status.
    """
    from hfsae.cli import main as run

    return run()


if __name__ == "__main__":
    sys.modules["hfsae_cli"] = sys.modules[__name__]
    sys.exit(main())
