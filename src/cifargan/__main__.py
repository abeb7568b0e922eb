"""`python -m cifargan` is `cifargan`."""

import sys

from cifargan.cli import main

if __name__ == "__main__":
    sys.exit(main())
