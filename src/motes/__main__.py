"""`python -m motes`."""

import sys

from motes.cli import main

if __name__ == "__main__":
    sys.exit(main())
