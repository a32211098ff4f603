r"""What a first stage's latents look like, in figures that tell early whether a second stage can learn them.

For every channel c, over pictures x and places:

* ``mean/c`` and ``std/c`` of draws z;
* ``sigma/c``, the root mean square of the posterior's own deviation, where there is one.

:math:`\mathrm{Var}(z) = \mathrm{Var}(E[z|x]) + \mathrm{sigma}^2`: what a channel says about pictures, and noise.

* ``noise``: the noise's share in this, a mean over channels. At 1 the posterior is the prior, whatever the picture.
* ``active``: how many channels are active, Var(E[z|x]) > 1 % of Var(z). That is the active unit of Burda, Grosse &
  Salakhutdinov (2016), whose threshold is 0.01 for Var(z) near the prior's 1, made free of scale, and counted by
  channels, not by single places. A channel that hardly moves beside the others (a thousandth) is not active either.
* ``spectrum/w`` and ``picture_spectrum/w``: the share of power in the octave of wavelengths from w places on, of the
  mode of active channels, and of the pictures averaged down to the latents' size
  (:mod:`ldm_lightning.latent.spectrum`);
* ``places``: of one latent; N of them times ``places`` is how often a code could occur.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.latent.posterior import Posterior
from ldm_lightning.latent.scale import LatentStatistics
from ldm_lightning.latent.spectrum import OCTAVES, Spectrum

__all__ = ["ACTIVE", "LatentFigures", "active_channels"]

ACTIVE = 0.01  # share of Var(z) that depends on the picture
_MOVES = 1e-6  # the least share in the largest second moment: a constant, but for rounding, has less


def active_channels(mean: Tensor, std: Tensor, sigma: Tensor) -> Tensor:
    """(C,) bool, from the (C,) figures of the same names."""
    told = std.square() - sigma.square()
    return (told > ACTIVE * std.square()) & (told > _MOVES * (mean.square() + std.square()).max())


class LatentFigures(nn.Module):
    """The figures above, over all batches and ranks.

    Args:
        channels: of a latent.
        picture_channels: of a picture.
    """

    def __init__(self, channels: int, picture_channels: int) -> None:
        super().__init__()
        self.statistics = LatentStatistics(channels)
        self.spectrum, self.picture_spectrum = Spectrum(channels), Spectrum(picture_channels)
        self.places = 0

    def update(self, posterior: Posterior, x: Tensor) -> None:
        """Add the posterior of a batch of pictures (B, C, *space)."""
        mode = posterior.mode()
        self.places = mode[0, 0].numel()
        self.statistics.update(posterior)
        self.spectrum.update(mode)
        self.picture_spectrum.update(F.interpolate(x.float(), mode.shape[2:], mode="area"))

    def pop(self) -> dict[str, float]:
        """The figures by name, and start afresh; all ranks must call this."""
        measured = self.statistics.compute()
        mean, std, sigma = (torch.tensor(measured[name], dtype=torch.float64) for name in ("mean", "std", "sigma"))
        names = ("mean", "std", "sigma") if sigma.any() else ("mean", "std")
        figures = {f"{name}/{c}": value for name in names for c, value in enumerate(measured[name])}
        active = active_channels(mean, std, sigma)
        figures |= {"places": self.places, "active": float(active.sum())}
        if sigma.any():
            figures["noise"] = float((sigma / std.clamp(min=1e-30)).square().mean())
        shares, white = self.spectrum.compute()
        pictures, _ = self.picture_spectrum.compute()
        for name, channels in (("spectrum", shares.cpu()[active]), ("picture_spectrum", pictures.cpu())):
            moving = channels[channels.isfinite().all(1)]
            if len(moving):
                figures |= {
                    f"{name}/{octave}": float(share)
                    for octave, share, there in zip(OCTAVES, moving.mean(0), white, strict=True)
                    if there > 0
                }
        for metric in (self.statistics, self.spectrum, self.picture_spectrum):
            metric.reset()
        return figures
