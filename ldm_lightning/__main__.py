"""``python -m ldm_lightning`` is the same as ``ldm``."""

import sys
from pathlib import Path

from ldm_lightning.cli import main

if __name__ == "__main__":
    if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parents[1]:
        del sys.path[0]  # the current folder, in which `ldm` looks for no code either
    main()
