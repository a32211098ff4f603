from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def shaken() -> Callable[[nn.Module], nn.Module]:
    """Move every parameter off its initialization, so that zero-initialized branches take part."""

    def shake(module: nn.Module, scale: float = 0.1) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        return module.eval()

    return shake


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
