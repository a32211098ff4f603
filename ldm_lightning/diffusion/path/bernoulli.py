r"""The Bernoulli path: every bit is kept, or replaced by a fair coin (Sohl-Dickstein et al. 2015; Austin et al. 2021).

Bits are -1 and 1, the standardized form of 0 and 1 under fair coins: what has mean :math:`\kappa` is 1 with probability
:math:`(1 + \kappa) / 2`. A bit is kept until t with probability :math:`\kappa_t`, and from s to t with
:math:`\kappa_{t|s} = \kappa_t / \kappa_s`, so that

.. math:: q(z_t = 1 | z_0) = \tfrac12 (1 + \kappa_t z_0), \qquad q(z_t = 1 | z_s) = \tfrac12 (1 + \kappa_{t|s} z_s),

and by Bayes' rule, since :math:`q(z_t | z_s) = (1 + \kappa_{t|s} z_t z_s) / 2` for either value of both,

.. math:: q(z_s = 1 | z_t, z_0) = \frac{(1 + \kappa_{t|s} z_t)(1 + \kappa_s z_0)}{2 \, (1 + \kappa_t z_t z_0)} .

What a denoiser answers is the natural parameter of the clean data given z_t. For a Gaussian of given width that is its
mean, for a bit it is the logit of the probability of a one. It is what may be extrapolated linearly, so guidance needs
no knowledge of the path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ldm_lightning.diffusion.path.protocol import expand
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = ["BernoulliPath", "Keep", "bits", "cosine_keep", "linear_keep"]

# Elementwise: the probability that a bit has been kept until t in [0, 1]; falls from 1 to 0, strictly.
Keep = Callable[[Tensor], Tensor]


def linear_keep(t: Tensor) -> Tensor:
    """1 - t."""
    return 1 - t


def cosine_keep(t: Tensor) -> Tensor:
    """cos(pi t / 2), which leaves the clean end slowly; as a sine, so that it is exactly 0 at t = 1."""
    return torch.sin(math.pi / 2 * (1 - t))


def bits(one: Tensor, like: Tensor) -> Tensor:
    """1 where ``one`` (bool) is true, else -1, in the dtype of ``like``."""
    return torch.where(one, 1.0, -1.0).to(like.dtype)


class _NoSchedule:
    """Stands where other paths have a schedule: asking bits for signal and noise is the user's mistake."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise _no_snr()

    def log_snr(self, t: Tensor) -> Tensor:
        raise _no_snr()

    def time(self, log_snr: Tensor) -> Tensor:
        raise _no_snr()

    def scale(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        raise _no_snr()


def _no_snr() -> UserError:
    return UserError("this asks for a signal-to-noise ratio, which the bits of a BernoulliPath do not have")


@dataclass(frozen=True)
class BernoulliPath:
    """Bits, each kept with probability keep(t), else a fair coin.

    Args:
        keep: see :data:`Keep`; :func:`linear_keep` or :func:`cosine_keep`.

    Shapes: latents are (B, C, *space), -1 or 1, of any floating dtype; times (B,) in [0, 1].

    Raises:
        UserError: it does not keep everything at t = 0, or something at t = 1.
    """

    suits: ClassVar[Mapping[str, str]] = {"sampler": "bernoulli_ancestral", "prediction": "bits", "likelihood": "bound"}

    keep: Keep = linear_keep

    def __post_init__(self) -> None:
        first, last = self.keep(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        if abs(first - 1) > 1e-6 or abs(last) > 1e-6:
            raise UserError(f"path.keep falls from {first:g} to {last:g}, but must do so from 1 at t = 0 to 0 at t = 1")

    @property
    def schedule(self) -> _NoSchedule:
        """Raises UserError when it is asked: weightings and times by log-SNR mean nothing here."""
        return _NoSchedule()

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor]:
        """keep(t), viewed so that it broadcasts over ``like``."""
        return (expand(self.keep(t), like),)

    def noise(self, streams: Streams, shape: Sequence[int]) -> Tensor:
        """(B, *shape) uniforms in [0, 1), every sample's from its own stream."""
        return streams.uniform("noise", shape)

    def corrupt(self, z0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw z_t from q(z_t | z_0) with the given uniform ``noise``."""
        (keep,) = self.coefficients(t, z0)
        return bits(noise < (1 + keep * z0) / 2, z0)

    def prior(self, streams: Streams, shape: Sequence[int]) -> Tensor:
        """Draw z_1, where sampling starts: fair coins.

        Returns:
            (B, *shape); its numbers are independent of those of :meth:`noise`.
        """
        noise = streams.uniform("prior", shape)
        return bits(noise < 0.5, noise)

    def posterior(self, z_t: Tensor, z0: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """q(z_s = 1 | z_t, z_0) for s < t, shaped like ``z_t``; at s = 0 it is 1 or 0, as z_0 is."""
        (keep_t,), (keep_s,) = self.coefficients(t, z_t), self.coefficients(s, z_t)
        return (1 + keep_t / keep_s * z_t) * (1 + keep_s * z0) / (2 * (1 + keep_t * z_t * z0))

    def step(self, z_t: Tensor, logits: Tensor, s: float, t: float) -> Tensor:
        r"""p(z_s = 1 | z_t) of a model for s < t, shaped like ``z_t``: the posterior's mixture over the clean bit,

        .. math:: p(z_s | z_t) = \sum_b p(z_0 = b | z_t) \, q(z_s | z_t, z_0 = b) .

        This is exact, whatever b is more likely. (With the posterior evaluated at the *mean* of z_0 it would not be,
        for the posterior is no linear function of z_0.)

        Args:
            z_t: (B, C, *space) bits.
            logits: of the model's p(z_0 = 1 | z_t), shaped like ``z_t``.
            s: where the step ends.
            t: where it starts.

        Returns:
            At least in single precision: bfloat16 rounds what is above 0.998 to 1.
        """
        # Four numbers by either bit, in double precision on the host, so that a step does not wait for the device.
        clean, noisy = torch.tensor([[-1.0, 1.0]] * 2, dtype=torch.float64), torch.tensor([[-1.0], [1.0]]).double()
        (off_off, off_on), (on_off, on_on) = self.posterior(
            noisy, clean, noisy.new_tensor([s]), noisy.new_tensor([t])
        ).tolist()
        one = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
        return torch.where(z_t > 0, on_off + (on_on - on_off) * one, off_off + (off_on - off_off) * one)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,) cross-entropy in nats of logits and the probabilities of a one, averaged over a sample's dimensions."""
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(output, target, reduction="none")
        return entropy.flatten(1).mean(1)
