r"""The shift: any schedule, moved towards the noise.

Larger pictures are more redundant: the same noise destroys less of them. Moving every log-SNR of a schedule by the same
amount makes up for it,

.. math:: \lambda_{shifted}(t) = \lambda(t) - 2 \log s ,

with s the ratio of the sides of the picture (Hoogeboom et al. 2023, "Simple diffusion", eq. 7), or, for latents, the
root of the ratio of their dimensions (Esser et al. 2024, eq. 23). On the linear flow this is the change of time
:math:`t \mapsto s t / (1 + (s - 1) t)`. The scale of the schedule is kept: a variance-preserving one stays so.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ldm_lightning.diffusion.schedule.protocol import Schedule
from ldm_lightning.errors import UserError

__all__ = ["Shifted"]


class Shifted(nn.Module):
    """A schedule with ``shift`` times the noise per signal at every time.

    Args:
        schedule: what to shift.
        shift: above 1 towards the noise, below 1 towards the data.

    Raises:
        UserError: the shift is not positive and finite.
    """

    def __init__(self, schedule: Schedule, shift: float) -> None:
        super().__init__()
        if not 0 < shift < math.inf:
            raise UserError(f"a schedule's shift={shift} multiplies sigma / alpha: set it above 0 (1 changes nothing)")
        self.schedule = schedule
        self.fall = 2 * math.log(shift)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]."""
        return self.schedule.scale(self.log_snr(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """The schedule's own less 2 log(shift)."""
        return self.schedule.log_snr(t) - self.fall

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the shifted schedule has this log-SNR."""
        return self.schedule.time(log_snr + self.fall)

    def scale(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """The schedule's own."""
        return self.schedule.scale(log_snr)
