"""Sizes of networks, as papers print them: parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["multiply_adds", "parameters"]


def parameters(module: nn.Module) -> int:
    """Count the trainable parameters of ``module``."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def multiply_adds(module: Callable[..., Any], *inputs: Any) -> int:
    """Count the multiply-adds of ``module(*inputs)``: convolutions, linear maps and attention, forward only.

    ``module`` may be a method of one. This is the figure that papers on diffusion models call (G)flops.
    """
    # Fake tensors have shapes but no numbers, so that nothing is computed.
    # The plain attention kernel is made of matrix products, which the counter knows on every device.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), fake, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    flops: int = counter.get_total_flops()
    return flops // 2
