"""``python -m genrl_core`` and the command ``genrl``."""

import sys

from genrl_core.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
