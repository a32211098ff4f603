"""Predictions and the denoiser: every network that answers its target gives the clean data back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Clean, Edm, Epsilon, Flow, Velocity
from ldm_lightning.diffusion.schedule import LinearFlow, TableSchedule, Trigonometric
from ldm_lightning.errors import UserError

PAIRS = st.tuples(st.floats(-5, 5), st.floats(-5, 5))


class Script(nn.Module):
    """A network that gives a prepared answer and remembers what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[object, ...]] = []

    def forward(self, *question: object) -> Tensor:
        self.asked.append(question)
        return self.answer


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- definitions -----------------------------------------------------------------------------------------------------


@given(PAIRS)
def test_epsilon_is_the_noise_and_clean_the_data(pair):
    z0, noise = double(pair[0]), double(pair[1])
    alpha, sigma = double(0.6), double(0.8)
    assert torch.equal(Epsilon().target(z0, noise, alpha, sigma), noise)
    assert torch.equal(Clean().target(z0, noise, alpha, sigma), z0)


@given(PAIRS, st.floats(0.01, 1.5))
def test_velocity_is_the_speed_along_the_circle(pair, angle):
    """With alpha = cos(phi) and sigma = sin(phi), v = dz/dphi (Salimans & Ho 2022, appendix D)."""
    z0, noise, phi = double(pair[0]), double(pair[1]), double(angle).requires_grad_()
    (speed,) = torch.autograd.grad(phi.cos() * z0 + phi.sin() * noise, phi)
    target = Velocity().target(z0, noise, phi.cos(), phi.sin()).detach()
    torch.testing.assert_close(target, speed, rtol=0, atol=1e-14)


@given(PAIRS, st.floats(0, 1))
def test_flow_is_the_speed_along_the_linear_flow(pair, time):
    z0, noise, t = double(pair[0]), double(pair[1]), double(time).requires_grad_()
    path = GaussianPath(LinearFlow())
    (speed,) = torch.autograd.grad(path.corrupt(z0, t, noise), t)
    torch.testing.assert_close(Flow().target(z0, noise, *path.coefficients(t, z0)).detach(), speed)


NUMBERS = st.floats(0.05, 20)


@given(pair=PAIRS, alpha=NUMBERS, sigma=NUMBERS, sigma_data=NUMBERS)
def test_edm_is_table_1_at_the_rescaled_latents_and_noise_level(pair, alpha, sigma, sigma_data):
    """Karras et al. 2022, table 1, whose noisy data are z / alpha and whose noise level is sigma / alpha."""
    level = sigma / alpha
    c_skip = sigma_data**2 / (level**2 + sigma_data**2)
    c_out = level * sigma_data / (level**2 + sigma_data**2) ** 0.5
    skip, out = Edm(sigma_data).coefficients(double(alpha), double(sigma))
    assert (skip.item() * alpha, out.item()) == pytest.approx((c_skip, c_out))
    z0, noise = pair
    noisy = z0 + level * noise
    target = Edm(sigma_data).target(double(z0), double(noise), double(alpha), double(sigma))
    assert target.item() == pytest.approx((z0 - c_skip * noisy) / c_out, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_asks_the_network_at_c_in_and_c_noise(path, signal_left, sigma_data):
    if not signal_left:
        pytest.skip("refused")
    network, z, t = Script(torch.zeros(5, 3)), torch.randn(5, 3).double(), double(0.001, 0.1, 0.5, 0.9, 1)
    Denoiser(network, path, Edm(sigma_data))(z, t, {})
    alpha, sigma = path.schedule.alpha_sigma(t)
    level = sigma / alpha
    c_in, c_noise = 1 / (level**2 + sigma_data**2).sqrt(), level.log() / 4
    torch.testing.assert_close(network.asked[0][0], c_in[:, None] * z / alpha[:, None])
    torch.testing.assert_close(network.asked[0][1], c_noise)


def test_edm_keeps_input_and_target_at_unit_variance(path):
    """For clean data of standard deviation sigma_data, at all times."""
    t, sigma_data = torch.linspace(0.01, 1, 20, dtype=torch.float64), 0.5
    alpha, sigma = path.schedule.alpha_sigma(t)
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    of_z0, of_noise = (Edm(sigma_data).target(*pair, alpha, sigma) for pair in ((one, zero), (zero, one)))
    torch.testing.assert_close((sigma_data * of_z0) ** 2 + of_noise**2, one)
    c_in = Edm(sigma_data).question(path, one[:, None], t)[0][:, 0]
    torch.testing.assert_close(c_in**2 * ((sigma_data * alpha) ** 2 + sigma**2), one)


def test_velocity_is_edm_turned_around_on_variance_preserving_paths():
    """... of data of unit variance, which is why velocity serves where EDM's noise level is infinite."""
    schedule, t = Trigonometric(), torch.linspace(0, 1, 11, dtype=torch.float64)
    z0, noise = torch.randn(2, 11, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(Edm().target(z0, noise, alpha, sigma), -Velocity().target(z0, noise, alpha, sigma))


# --- round trips -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(pair=PAIRS, t=st.floats(1e-6, 1))
def test_target_gives_the_clean_data_back(path, prediction, pair, t):
    if isinstance(prediction, Epsilon) and path.schedule.alpha_sigma(torch.ones(1))[0] == 0:
        t = min(t, 0.999)
    z0, noise = double(pair[0]), double(pair[1])
    alpha, sigma = path.schedule.alpha_sigma(double(t))
    skip, out = prediction.coefficients(alpha, sigma)
    clean = skip * path.corrupt(z0, double(t), noise) + out * prediction.target(z0, noise, alpha, sigma)
    assert clean.item() == pytest.approx(z0.item(), abs=1e-10)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoiser_with_a_perfect_network_is_perfect(path, prediction, dtype):
    z0, noise = torch.randn(2, 6, 3, 2, 2, dtype=dtype)
    t = torch.tensor([1e-4, 0.1, 0.5, 0.9, 0.99, 1.0], dtype=dtype)
    denoiser = Denoiser(Script(torch.empty(0)), path, prediction)
    denoiser.network.answer = denoiser.target(z0, noise, t)
    clean = denoiser.clean(path.corrupt(z0, t, noise), t, {})
    alpha, sigma = path.coefficients(t, z0)
    amplification = (alpha + sigma) / alpha if isinstance(prediction, Epsilon) else torch.ones_like(alpha)
    assert ((clean - z0).abs() < 20 * torch.finfo(dtype).eps * amplification).all()


# --- the denoiser ----------------------------------------------------------------------------------------------------


def test_denoiser_hands_its_question_to_the_network_unchanged(path):
    network = Script(torch.ones(2, 3))
    z, t, condition, drop = torch.randn(2, 3), torch.rand(2), {"class": torch.arange(2)}, torch.tensor([True, False])
    denoiser = Denoiser(network, path, Flow())
    assert torch.equal(denoiser(z, t, condition, drop), torch.ones(2, 3))
    denoiser.clean(z, t, condition)
    assert all(given is asked for given, asked in zip((z, t, condition, drop), network.asked[0], strict=True))
    assert network.asked[1][3] is None


def test_conversions_keep_the_precision_of_the_latents(path):
    denoiser = Denoiser(Script(torch.ones(2, 3, dtype=torch.bfloat16)), path, Flow())
    z, t = torch.randn(2, 3), torch.rand(2)
    assert denoiser(z, t, {}).dtype == torch.float32
    assert denoiser.clean(z, t, {}).dtype == torch.float32


@pytest.mark.parametrize("refused", [Epsilon(), Edm()], ids=str)
def test_epsilon_and_edm_are_refused_where_no_signal_is_left(path, signal_left, refused):
    if signal_left:
        Denoiser(nn.Identity(), path, refused)
        return
    name = type(refused).__name__.lower()
    with pytest.raises(UserError, match=rf"prediction={name} .* use prediction=velocity, prediction=flow") as error:
        Denoiser(nn.Identity(), path, refused)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("allowed")
def test_every_other_pair_is_accepted(path, prediction):
    Denoiser(nn.Identity(), path, prediction)


def test_epsilon_is_judged_by_the_signal_left_not_by_the_kind_of_schedule():
    Denoiser(nn.Identity(), GaussianPath(TableSchedule(torch.full((2,), 0.999))), Epsilon())
    with pytest.raises(UserError):
        Denoiser(nn.Identity(), GaussianPath(TableSchedule(torch.full((5,), 0.999))), Epsilon())
