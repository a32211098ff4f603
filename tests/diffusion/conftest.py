"""What the diffusion tests share: every schedule, and Gaussian data, for which everything is known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoised import Level
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Clean, Edm, Epsilon, Flow, Prediction, Velocity
from ldm_lightning.diffusion.sampler.grid import Grid, flow_grid, uniform_grid
from ldm_lightning.diffusion.schedule import (
    LinearFlow,
    Schedule,
    Shifted,
    TableSchedule,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
    cosine_betas,
    laplace_betas,
    linear_betas,
    scaled_linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "flow": LinearFlow,
    "linear": lambda: TableSchedule(linear_betas()),
    "scaled_linear": lambda: TableSchedule(scaled_linear_betas()),
    "cosine": lambda: TableSchedule(cosine_betas()),
    "sigmoid": lambda: TableSchedule(sigmoid_betas()),
    "laplace": lambda: TableSchedule(laplace_betas()),
    "zero_snr": lambda: TableSchedule(zero_terminal_snr(scaled_linear_betas())),
    "vp": VariancePreserving,
    "edm": VarianceExploding,
    "trigonometric": Trigonometric,
    "shifted_flow": lambda: Shifted(LinearFlow(), 3.0),
    "shifted_cosine": lambda: Shifted(TableSchedule(cosine_betas()), 2.0),
}


@dataclass(frozen=True)
class GaussianData:
    """z_0 ~ N(mean, covariance): latents are (B, D), everything in float64."""

    mean: Tensor
    covariance: Tensor

    def marginal(self, path: GaussianPath, t: float) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of z_t."""
        alpha, sigma = path.schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        return alpha * self.mean, alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean)).double()

    def denoise(self, path: GaussianPath) -> Callable[[Tensor, Tensor], Tensor]:
        """(z_t, t) -> E[z_0 | z_t] = mean + alpha S (alpha^2 S + sigma^2 I)^-1 (z_t - alpha mean)."""
        eigenvalues, basis = torch.linalg.eigh(self.covariance)

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = path.coefficients(t, z)
            gain = alpha * eigenvalues / (alpha**2 * eigenvalues + sigma**2)
            return self.mean + ((z - alpha * self.mean) @ basis * gain) @ basis.T

        return denoise

    def transport(self, path: GaussianPath) -> tuple[Tensor, Tensor]:
        """Matrix and offset of the affine map z_1 -> z_0 of the probability-flow ODE, along the principal axes."""
        alpha, sigma = path.schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
        eigenvalues, basis = torch.linalg.eigh(self.covariance)
        matrix = basis * (eigenvalues / (alpha**2 * eigenvalues + sigma**2)).sqrt() @ basis.T
        return matrix, self.mean - matrix @ (alpha * self.mean)


def level(t: Tensor) -> Level:
    """What a denoise function is asked at, where only the network and an interval of times matter."""
    return Level(t, float(t[0]))


class ToyNetwork(nn.Module):
    """Elementwise, hence exact to the bit in any batch; answers differ by class and move to 0 without one."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[Tensor] = []
        self.drops: list[Tensor | None] = []

    def forward(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Tensor:
        self.times.append(t)
        self.drops.append(drop)
        label = condition["class"] + 1.0
        if drop is not None:
            label = torch.where(drop, 0.0, label)
        shape = (-1, *[1] * (z.ndim - 1))
        return z * (0.5 + t.view(shape)) + label.view(shape)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def network() -> ToyNetwork:
    return ToyNetwork()


@pytest.fixture(scope="session")
def data() -> GaussianData:
    factor = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.4, 0.3, 1.1]], dtype=torch.float64)
    return GaussianData(torch.tensor([0.3, -0.7, 1.2], dtype=torch.float64), factor @ factor.T)


@pytest.fixture(scope="session", params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]()


@pytest.fixture(scope="session")
def path(schedule: Schedule) -> GaussianPath:
    return GaussianPath(schedule)


@pytest.fixture(scope="session")
def signal_left(path: GaussianPath) -> bool:
    """Whether the path ends above zero signal, as epsilon and EDM need it."""
    return bool(path.schedule.alpha_sigma(torch.ones(1))[0] > 1e-6)


@pytest.fixture(scope="session")
def grid(path: GaussianPath) -> Grid:
    """Even times; but not where the first of a hundred would leap over a tenth of the way (Laplace).

    There alpha starts like the root of 1 - t, and even times cost samplers half an order.
    """
    alpha, sigma = path.schedule.alpha_sigma(torch.tensor(0.99))
    return uniform_grid if sigma / (alpha + sigma) > 0.9 else flow_grid


PREDICTIONS = [Epsilon(), Clean(), Velocity(), Flow(), Edm(), Edm(0.5)]


@pytest.fixture(scope="session", params=PREDICTIONS, ids=str)
def prediction(request: pytest.FixtureRequest) -> Prediction:
    return request.param


@pytest.fixture(scope="session")
def allowed(signal_left: bool, prediction: Prediction) -> None:
    """Skips the pairs of path and prediction that the denoiser refuses."""
    if not signal_left and isinstance(prediction, Epsilon | Edm):
        pytest.skip("refused")
