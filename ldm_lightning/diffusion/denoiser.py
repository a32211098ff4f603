"""The denoiser: one question, "what are the clean data, given z_t?", whatever the network was trained to predict."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoised import Denoised
from ldm_lightning.diffusion.learned_variance import fraction_of
from ldm_lightning.diffusion.needs import check_path
from ldm_lightning.diffusion.path import Path
from ldm_lightning.diffusion.prediction import Prediction
from ldm_lightning.errors import UserError

__all__ = ["ESTIMATE", "Denoiser"]

ESTIMATE = "estimate"
"""The name under which a self-conditioned network finds an estimate among its conditions."""


class Denoiser(nn.Module):
    """A network, the path it undoes, and the prediction it makes.

    Args:
        network: called as ``network(z, t, condition, drop)``; answers in the shape of ``z``.
        path: the corruption.
        prediction: what the network predicts.

    Raises:
        UserError: the prediction is for another kind of path; or the schedule ends in pure noise, where noise does not
            determine the data, and EDM's noise level, the network's time, is infinite.
    """

    def __init__(self, network: nn.Module, path: Path, prediction: Prediction) -> None:
        super().__init__()
        check_path("prediction", prediction, path)
        if getattr(prediction, "needs_signal", False) and path.schedule.alpha_sigma(torch.ones(1))[0].item() < 1e-6:
            raise UserError(
                f"prediction={type(prediction).__name__.lower()} cannot start from a schedule whose last step holds no "
                "signal (alpha(1) = 0): use prediction=velocity, prediction=flow or prediction=clean"
            )
        self.network = network
        self.path = path
        self.prediction = prediction

    def forward(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Tensor:
        """The network's own output, the space in which the loss is taken.

        Args:
            z: (B, C, *space) corrupted latents; in the network's precision, and so is every answer.
            t: (B,) times in [0, 1], at least in single precision: lower ones cannot tell neighbouring steps apart.
            condition: tensors by name, first dimension B.
            drop: (B,) bool, True where the condition is replaced by the learned null condition.
        """
        asked, time = self.prediction.question(self.path, z, t)
        output: Tensor = self.network(asked.to(z.dtype), time, condition, drop)
        return output.to(z.dtype)  # conversions are made in full precision also under autocast

    def target(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What :meth:`forward` should answer."""
        return self.prediction.target(z0, noise, *self.path.coefficients(t, z0))

    def denoise(
        self,
        z: Tensor,
        t: Tensor,
        condition: Mapping[str, Tensor],
        drop: Tensor | None = None,
        estimate: Tensor | None = None,
    ) -> Denoised:
        """All that the network says about the clean latents.

        Args:
            z: as of :meth:`forward`, and so are the next three.
            t: (B,) times.
            condition: tensors by name.
            drop: where the condition is replaced.
            estimate: shaped like ``z``, what a self-conditioned network is told of the clean latents.
        """
        told = condition if estimate is None else {**condition, ESTIMATE: estimate}
        output = self(z, t, told, drop)
        return Denoised(self.answer(z, t, output), fraction_of(output) if self.learns_variance else None)

    @property
    def learns_variance(self) -> bool:
        """Whether the network tells the variance of a step, too."""
        return getattr(self.prediction, "learns_variance", False)

    def clean(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Tensor:
        """The natural parameter of the clean latents given ``z``, and shaped like it.

        On a Gaussian path that is their mean E[z_0 | z_t], for bits the logit of the probability of a one.
        """
        return self.answer(z, t, self(z, t, condition, drop))

    def answer(self, z: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """What :meth:`clean` answers, from the network's ``output``."""
        return self.prediction.answer(z, output, *self.path.coefficients(t, z)).to(z.dtype)
