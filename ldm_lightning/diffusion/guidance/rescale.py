r"""Rescaled guidance (Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", section 3.4).

Extrapolation makes predictions too large, which shows as overexposed pictures. The guided prediction is brought back to
the standard deviation of the unguided one, sample by sample, and the two are mixed:

.. math:: \varphi \, \frac{\mathrm{std}(x^{towards})}{\mathrm{std}(x^{guided})} \, x^{guided}
          + (1 - \varphi) \, x^{guided}.

Here x are the clean latents, whatever the network predicts, so that the result does not depend on the parameterization.
A guided prediction that is constant, but for rounding, has no deviation to bring back and stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_lightning.errors import UserError

__all__ = ["check_rescale", "rescaled"]


def rescaled(guided: Tensor, towards: Tensor, phi: float) -> Tensor:
    """Eqs. 15 and 16, on (B, C, *space); phi = 0 returns ``guided`` itself, 1 the deviation of ``towards``."""
    if phi == 0:
        return guided
    space = tuple(range(1, guided.ndim))
    wide = guided.to(torch.promote_types(guided.dtype, torch.float32))
    wanted, deviation = (x.to(wide.dtype).std(space, correction=0, keepdim=True) for x in (towards, wide))
    floor = 4 * torch.finfo(guided.dtype).eps * wide.abs().mean(space, keepdim=True)
    ratio = torch.where(deviation > floor, phi * wanted / deviation + 1 - phi, 1.0)
    return (wide * ratio).to(guided.dtype)


def check_rescale(phi: float) -> None:
    """Raise UserError unless phi is in [0, 1]."""
    if not 0 <= phi <= 1:
        raise UserError(f"guidance.rescale={phi}: set it from 0 (none) to 1 (full); 0.7 is usual")
