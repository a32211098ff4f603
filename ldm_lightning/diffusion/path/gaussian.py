"""The Gaussian path: signal fades, noise grows, by a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.path.protocol import expand
from ldm_lightning.diffusion.schedule import Schedule
from ldm_lightning.rng import Streams

__all__ = ["GaussianPath"]


class GaussianPath(nn.Module):
    r"""z_t = alpha(t) z_0 + sigma(t) noise, for any schedule.

    Args:
        schedule: the noise schedule.

    Shapes: latents are (B, C, *space), times (B,) in [0, 1].
    """

    suits: ClassVar[Mapping[str, str]] = {"sampler": "euler", "prediction": "flow", "likelihood": "bound"}
    schedule: Schedule

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t), at least in single precision, viewed so that they broadcast over ``like``."""
        alpha, sigma = self.schedule.alpha_sigma(t.to(torch.promote_types(t.dtype, torch.float32)))
        return expand(alpha, like), expand(sigma, like)

    def noise(self, streams: Streams, shape: Sequence[int]) -> Tensor:
        """(B, *shape) standard normals, every sample's from its own stream."""
        return streams.normal("noise", shape)

    def corrupt(self, z0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw z_t from q(z_t | z_0) with the given standard normal ``noise``."""
        alpha, sigma = self.coefficients(t, z0)
        return (alpha * z0 + sigma * noise).to(z0.dtype)

    def prior(self, streams: Streams, shape: Sequence[int]) -> Tensor:
        """Draw z_1, where sampling starts: N(0, alpha(1)^2 + sigma(1)^2), the marginal of standardized latents.

        Returns:
            (B, *shape); its numbers are independent of those of :meth:`noise`.
        """
        noise = streams.normal("prior", shape)
        alpha, sigma = self.coefficients(noise.new_ones(1), noise)
        return (alpha**2 + sigma**2).sqrt() * noise

    def posterior(self, z_t: Tensor, z0: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z_s | z_t, z_0) for s < t (Kingma et al. 2021, appendix A).

        Returns:
            Mean, shaped like ``z_t``, and standard deviation, (B, 1, ..., 1); the latter is 0 for s = 0.
        """
        alpha_t, sigma_t = self.coefficients(t, z_t)
        alpha_s, sigma_s = self.coefficients(s, z_t)
        added = self.added(s, t, z_t)
        mean = alpha_t / alpha_s * (sigma_s / sigma_t) ** 2 * z_t + alpha_s * added * z0
        return mean.to(z_t.dtype), sigma_s * added.sqrt()

    def added(self, s: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """1 - SNR(t) / SNR(s): the share of the noise at t that was added since s < t; broadcasts over ``like``."""
        return expand(-torch.expm1(self.schedule.log_snr(t) - self.schedule.log_snr(s)), like)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,) squared error of the network's output, averaged over a sample's dimensions."""
        return (output - target).square().flatten(1).mean(1)
