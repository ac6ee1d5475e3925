"""`python -m hfsae.cli`; `python -m hfsae_cli` shows its help sooner."""

import sys

from hfsae.cli import main

if __name__ == "__main__":
    sys.exit(main())
