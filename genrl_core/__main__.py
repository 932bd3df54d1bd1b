"""``python -m genrl_core`` and the command ``genrl``."""

import gc
import sys

gc.disable()  # imports make no garbage; looking for it took a quarter of a short command's time

from genrl_core.cli.app import main  # noqa: E402

gc.freeze()  # what they made stays until the process ends
gc.enable()

if __name__ == "__main__":
    sys.exit(main())
