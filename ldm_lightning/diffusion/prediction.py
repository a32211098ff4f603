r"""What a network predicts, and how the denoiser's answer follows from it.

The answer is the natural parameter of the clean data given z_t. On a Gaussian path that is their mean, and every
prediction F is a linear combination of clean data and noise, so that

.. math:: z_0 = c_{skip}(t) z_t + c_{out}(t) F(z_t, t).

For bits it is the logit of the probability of a one, which the network says itself.

The denoiser uses these conversions only; no sampler ever asks which prediction a network makes. A prediction may also
say in which form the network is asked: by default as it is, z_t and t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import BernoulliPath, GaussianPath

__all__ = ["Bits", "Clean", "Edm", "Epsilon", "Flow", "LearnedVariance", "Linear", "Prediction", "Velocity"]


class Prediction(Protocol):
    """One parameterization.

    The further arguments of :meth:`target` and :meth:`answer` are the path's coefficients at the time in question,
    which broadcast over the latents.

    Attributes:
        outputs_per_channel: how many network outputs describe one latent channel; the first ones are the prediction.
        learns_variance: whether the second ones are f of :mod:`~ldm_lightning.diffusion.learned_variance`.
        needs: on which paths.
    """

    outputs_per_channel: ClassVar[int] = 1
    learns_variance: ClassVar[bool] = False
    needs: ClassVar[Needs] = Needs()

    def question(self, path: Any, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given in place of ``z`` and (B,) ``t``."""
        ...

    def target(self, z0: Tensor, noise: Tensor, *coefficients: Any, **_: Any) -> Tensor:
        """What the network should answer."""
        ...

    def answer(self, z: Tensor, output: Tensor, *coefficients: Any, **_: Any) -> Tensor:
        """The natural parameter of the clean data that follows from the network's output."""
        ...


class Linear(Prediction, Protocol):
    """One on a Gaussian path; ``alpha`` and ``sigma`` broadcast over the latents."""

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    @property
    def needs_signal(self) -> bool:
        """Whether it says nothing about the data where alpha is 0."""
        return False

    def question(self, path: GaussianPath, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given in place of ``z`` and (B,) ``t``."""
        return z, t

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer."""
        ...

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out): clean data = c_skip * z_t + c_out * output."""
        ...

    def answer(self, z: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The expected clean data, E[z_0 | z_t]."""
        skip, out = self.coefficients(alpha, sigma)
        return skip * z + out * output


@dataclass(frozen=True)
class Epsilon(Linear):
    """The noise (Ho et al. 2020). Says nothing about the data where alpha is 0."""

    @property
    def needs_signal(self) -> bool:
        """Noise does not determine the data there."""
        return True

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise."""
        return noise

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = (z_t - sigma F) / alpha."""
        return 1 / alpha, -sigma / alpha


@dataclass(frozen=True)
class Clean(Linear):
    """The clean data, "x0"."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean data."""
        return z0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = F."""
        return alpha.new_zeros(()), alpha.new_ones(())


@dataclass(frozen=True)
class Velocity(Linear):
    """v = alpha noise - sigma z_0 (Salimans & Ho 2022)."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The angular velocity v."""
        return alpha * noise - sigma * z0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = (alpha z_t - sigma F) / (alpha^2 + sigma^2)."""
        power = alpha**2 + sigma**2
        return alpha / power, -sigma / power


@dataclass(frozen=True)
class Flow(Linear):
    """u = noise - z_0, the velocity of the linear flow (Lipman et al. 2022; Liu et al. 2022)."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Noise minus clean data."""
        return noise - z0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = (z_t - sigma F) / (alpha + sigma)."""
        total = alpha + sigma
        return 1 / total, -sigma / total


@dataclass(frozen=True)
class Edm(Linear):
    r"""The preconditioning of EDM (Karras et al. 2022, table 1), on any Gaussian path that ends above zero signal.

    Stated there for alpha = 1. Since :math:`z_t / \alpha = z_0 + (\sigma / \alpha) \epsilon`, it carries over by
    putting :math:`z_t / \alpha` for its noisy data and :math:`\sigma / \alpha` for its noise level. The network's input
    and its target both have unit variance at all times.

    Attributes:
        sigma_data: standard deviation of the clean data; 1 for standardized latents.
    """

    sigma_data: float = 1.0

    @property
    def needs_signal(self) -> bool:
        """The noise level, which is the network's time, is infinite there."""
        return True

    def _scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Standard deviation of z_t."""
        return (sigma**2 + (self.sigma_data * alpha) ** 2).sqrt()

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(z_0 - c_skip z_t) / c_out, of unit variance."""
        return (sigma / self.sigma_data * z0 - alpha * self.sigma_data * noise) / self._scale(alpha, sigma)

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The published c_skip / alpha, and c_out."""
        scale = self._scale(alpha, sigma)
        return self.sigma_data**2 * alpha / scale**2, self.sigma_data * sigma / scale

    def question(self, path: GaussianPath, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_in z_t of unit variance, and as its time c_noise = log(sigma / alpha) / 4."""
        return z / self._scale(*path.coefficients(t, z)), -path.schedule.log_snr(t) / 8


@dataclass(frozen=True)
class LearnedVariance(Linear):
    """Another prediction, and beside it the variance of an ancestral step (Nichol & Dhariwal 2021).

    The network answers (B, 2 C, *space); see :mod:`~ldm_lightning.diffusion.learned_variance` for the second half.

    Attributes:
        mean: the prediction in the first half.
    """

    outputs_per_channel: ClassVar[int] = 2
    learns_variance: ClassVar[bool] = True

    mean: Linear

    @property
    def needs_signal(self) -> bool:
        """As the prediction of the mean."""
        return self.mean.needs_signal

    def question(self, path: GaussianPath, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """As of the prediction of the mean."""
        return self.mean.question(path, z, t)

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Of the first half."""
        return self.mean.target(z0, noise, alpha, sigma)

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Of the first half."""
        return self.mean.coefficients(alpha, sigma)

    def answer(self, z: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The expected clean data, E[z_0 | z_t], by the first half."""
        return self.mean.answer(z, output.chunk(2, dim=1)[0], alpha, sigma)


@dataclass(frozen=True)
class Bits(Prediction):
    """The logits of the probabilities of a one, on a Bernoulli path."""

    needs: ClassVar[Needs] = Needs(paths=(BernoulliPath,))

    def question(self, path: BernoulliPath, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The bits, -1 or 1, as they are."""
        return z, t

    def target(self, z0: Tensor, noise: Tensor, keep: Tensor) -> Tensor:
        """1 where the clean bit is 1, 0 where it is -1: the probability that the logit should tell."""
        return (1 + z0) / 2

    def answer(self, z: Tensor, output: Tensor, keep: Tensor) -> Tensor:
        """The output."""
        return output
