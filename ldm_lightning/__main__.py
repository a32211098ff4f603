"""``python -m ldm_lightning`` is the same as ``ldm``."""

from ldm_lightning.cli import main

if __name__ == "__main__":
    main()
