"""The other guidances: what they reduce to, what they cost, and the property that each is named after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoised, Level
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import Autoguidance, ClassifierFree, Interval, NegativeCondition
from ldm_lightning.diffusion.guidance.rescale import rescaled
from ldm_lightning.diffusion.prediction import Clean, Velocity
from ldm_lightning.diffusion.sampler import DDIM, DDPM, Euler, Heun, uniform_grid
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams
from tests.diffusion.conftest import ToyNetwork, level


class Louder(ToyNetwork):
    """Elementwise; the class also decides how large the answer is, so that guidance changes its deviation."""

    def forward(self, z, t, condition, drop=None):
        label = super().forward(torch.zeros_like(z), t, condition, drop)
        return z * (0.5 + t.view(-1, 1, 1, 1)) * (1 + label / 5) + label


@pytest.fixture
def network() -> ToyNetwork:
    return Louder()


@pytest.fixture
def denoiser(network, path) -> Denoiser:
    return Denoiser(network, path, Velocity())


@pytest.fixture
def other(path) -> Denoiser:
    """A worse model: another network, and another prediction."""

    class Worse(Louder):
        def forward(self, z, t, condition, drop=None):
            return 0.7 * super().forward(z, t, condition, drop) - 0.2

    return Denoiser(Worse(), path, Clean())


def question(rows: int = 40) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    z = torch.randn(rows, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    return z, torch.linspace(0.1, 1, rows), {"class": torch.arange(rows) % 10}


def plain(denoiser: Denoiser, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return denoiser.clean(z, t, {"class": label})


# --- negative condition ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.3, 1.0, 7.5])
def test_no_negative_condition_is_the_null(denoiser, scale):
    z, t, condition = question()
    negative, free = (
        family(scale)(denoiser, condition)(z, level(t)).clean for family in (NegativeCondition, ClassifierFree)
    )
    assert torch.equal(negative, free)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.3, 1.0, 7.5])
def test_a_negative_condition_is_extrapolated_away_from(denoiser, scale):
    z, t, condition = question()
    towards, away = plain(denoiser, z, t, condition["class"]), plain(denoiser, z, t, torch.full((40,), 3))
    guided = NegativeCondition(scale, {"class": 3})(denoiser, condition)(z, level(t)).clean
    torch.testing.assert_close(guided, away + scale * (towards - away), rtol=1e-4, atol=1e-5)


def test_a_negative_condition_is_one_call_of_twice_the_rows_and_no_null(denoiser, network):
    z, t, condition = question()
    NegativeCondition(3.0, {"class": 3})(denoiser, condition)(z, level(t))
    assert [len(times) for times in network.times] == [80]
    assert not network.drops[0].any()


def test_a_negative_condition_may_be_a_sequence_and_leaves_other_conditions_alone(path):
    seen = {}

    class Reader(torch.nn.Module):
        def forward(self, z, t, condition, drop):
            seen.update(condition)
            return z

    z, t, condition = question(4)
    condition["caption"] = torch.arange(12).view(4, 3)
    guidance = NegativeCondition(2.0, {"caption": [7, 8, 9]})
    guidance(Denoiser(Reader(), path, Velocity()), condition)(z, level(t))
    assert torch.equal(seen["caption"], torch.cat([condition["caption"], torch.tensor([[7, 8, 9]] * 4)]))
    assert torch.equal(seen["class"], condition["class"].repeat(2))


def test_a_negative_condition_that_is_none_is_refused(denoiser):
    with pytest.raises(UserError, match=r"'clas'.*did you mean 'class'"):
        NegativeCondition(2.0, {"clas": 3})(denoiser, question()[2])


# --- autoguidance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.3, 1.0, 7.5])
def test_autoguidance_by_the_same_network_is_the_plain_model(denoiser, scale):
    z, t, condition = question()
    guided = Autoguidance(denoiser, scale)(denoiser, condition)(z, level(t)).clean
    torch.testing.assert_close(guided, plain(denoiser, z, t, condition["class"]))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.3, 1.0, 7.5])
def test_autoguidance_extrapolates_away_from_the_worse_model(denoiser, other, scale):
    z, t, condition = question()
    towards, away = (plain(model, z, t, condition["class"]) for model in (denoiser, other))
    assert not torch.allclose(towards, away)
    guided = Autoguidance(other, scale)(denoiser, condition)(z, level(t)).clean
    torch.testing.assert_close(guided, away + scale * (towards - away), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "calls"), [(1.0, (1, 0)), (0.0, (0, 1)), (2.0, (1, 1))])
def test_autoguidance_costs_one_evaluation_of_each_that_has_a_part_in_it(denoiser, network, other, scale, calls):
    z, t, condition = question()
    Autoguidance(other, scale)(denoiser, condition)(z, level(t))
    assert tuple(len(model.times) for model in (network, other.network)) == calls
    assert not any(drop.any() for drop in network.drops + other.network.drops)


def test_a_protocol_names_the_worse_model_and_does_not_print_it(other):
    assert str(Autoguidance(other, 2.0, name="runs/small")).startswith("Autoguidance(scale=2.0")
    assert "runs/small" in str(Autoguidance(other, 2.0, name="runs/small"))


# --- rescale ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["free", "negative", "auto"])
def guidance(request, other):
    return {
        "free": ClassifierFree(4.0),
        "negative": NegativeCondition(4.0, {"class": 3}),
        "auto": Autoguidance(other, 4.0),
    }[request.param]


def test_full_rescale_has_the_deviation_of_the_unguided_prediction_sample_by_sample(denoiser, guidance):
    z, t, condition = question()
    unguided = plain(denoiser, z, t, condition["class"])
    guided, full = (replace(guidance, rescale=phi)(denoiser, condition)(z, level(t)).clean for phi in (0.0, 1.0))
    deviation = unguided.flatten(1).std(1)
    torch.testing.assert_close(full.flatten(1).std(1), deviation, rtol=1e-4, atol=1e-5)
    assert ((guided.flatten(1).std(1) - deviation).abs() > 1e-3 * deviation).any()
    ratio = full / guided  # the same direction: one positive number a sample
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-3, atol=1e-5)
    assert (ratio > 0).all()


def test_rescale_mixes_linearly(denoiser, guidance):
    z, t, condition = question()
    none, some, full = (
        replace(guidance, rescale=phi)(denoiser, condition)(z, level(t)).clean for phi in (0.0, 0.7, 1.0)
    )
    torch.testing.assert_close(some, 0.3 * none + 0.7 * full)


def test_rescale_of_a_constant_prediction_is_finite(path):
    class Nothing(torch.nn.Module):
        def forward(self, z, t, condition, drop):
            return torch.zeros_like(z)

    z, t, condition = question()
    guided = ClassifierFree(3.0, rescale=1.0)(Denoiser(Nothing(), path, Clean()), condition)(z, level(t)).clean
    assert torch.equal(guided, torch.zeros_like(z))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 1, 1, 1)], ids=["constant", "one element"])
def test_a_prediction_without_deviation_stays_as_it_is(shape, dtype):
    """Neither zero over zero, nor rounding over rounding, is a factor."""
    ripple = 1 + torch.finfo(dtype).eps * torch.arange(2 * shape[1] * shape[2] * shape[3]).remainder(2).view(shape)
    for height in (3.0, -0.7, 1e-3, 1e3):
        guided = torch.full(shape, height, dtype=dtype)
        for towards in (guided, (height * ripple).to(dtype), torch.randn(shape).to(dtype)):
            assert torch.equal(rescaled(guided, towards, 0.7), guided)
        noisy = (height * ripple).to(dtype)
        assert torch.equal(rescaled(noisy, guided, 1.0), noisy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rescale_in_half_precision_is_that_of_double(dtype):
    towards = torch.randn(4, 4, 8, 8).to(dtype)
    guided = (3 * towards + torch.randn_like(towards)).to(dtype)
    answer = rescaled(guided, towards, 0.7)
    assert answer.dtype == dtype
    torch.testing.assert_close(answer, rescaled(guided.double(), towards.double(), 0.7).to(dtype))


@pytest.mark.parametrize("phi", [-0.1, 1.1])
def test_rescale_is_a_share(other, phi):
    for family in (ClassifierFree, NegativeCondition):
        with pytest.raises(UserError, match="rescale"):
            family(2.0, rescale=phi)
    with pytest.raises(UserError, match="rescale"):
        Autoguidance(other, 2.0, rescale=phi)


# --- limited interval ------------------------------------------------------------------------------------------------

# Even times, so that some lie inside an interval of times on every schedule.
SAMPLERS = {"euler": Euler(8), "ddim": DDIM(8, eta=0.5), "ddpm": DDPM(8), "heun": Heun(5, grid=uniform_grid)}


def rows(network: ToyNetwork) -> list[tuple[float, int]]:
    return [(float(times[0]), len(times)) for times in network.times]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("of", ["time", "log_snr"])
def test_the_second_evaluation_is_skipped_outside_the_interval(denoiser, network, path, name, of):
    z, _, condition = question(4)
    interval = Interval(0.3, 0.7) if of == "time" else Interval(-2.0, 2.0, of="log_snr")
    denoise = ClassifierFree(2.0, interval=interval)(denoiser, condition)
    SAMPLERS[name](denoise, path, z, Streams(0, torch.arange(4)))
    assert len(network.times) == SAMPLERS[name].evaluations
    for t, count in rows(network):
        place = t if of == "time" else float(path.schedule.log_snr(torch.tensor(t)))
        assert count == (8 if interval.low <= place <= interval.high else 4)
    assert {count for _, count in rows(network)} == {4, 8}


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_value_is_read_inside_the_loop(denoiser, path, name, monkeypatch):
    """On a GPU every such read would wait for all the work handed out so far."""
    z, _, condition = question(4)
    limited = ClassifierFree(2.0, interval=Interval(0.3, 0.7))(denoiser, condition)

    def forbidden(*args, **kwargs):
        raise AssertionError("a value was read")

    def watched(z: Tensor, level: Level) -> Denoised:
        with monkeypatch.context() as patch:
            for reading in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
                patch.setattr(Tensor, reading, forbidden)
            return limited(z, level)

    SAMPLERS[name](watched, path, z, Streams(0, torch.arange(4)))


def test_the_ends_lie_inside_also_where_binary_numbers_miss_them():
    interval = Interval(0.3, 0.7)
    for value, inside in ((3 * 0.1, True), (0.1 * 7, True), (0.3 - 1e-6, False), (0.7 + 1e-6, False)):
        assert interval.contains(Level(torch.full((2,), value), value)) == inside
    with pytest.raises(UserError, match="set it to time"):
        Interval(-2.0, 2.0, of="log_snr").contains(Level(torch.full((2,), 0.5), 0.5))


def test_inside_and_outside_are_the_guided_and_the_plain_prediction(denoiser, guidance):
    z, _, condition = question()
    limited = replace(guidance, interval=Interval(0.2, 0.6))(denoiser, condition)
    for time, expected in ((0.1, "plain"), (0.2, "guided"), (0.4, "guided"), (0.6, "guided"), (0.7, "plain")):
        t = torch.full((40,), time)
        unguided = plain(denoiser, z, t, condition["class"])
        answer = limited(z, level(t)).clean
        assert torch.equal(answer, unguided) == (expected == "plain")
        assert torch.equal(answer, guidance(denoiser, condition)(z, level(t)).clean) == (expected == "guided")


def test_impossible_intervals_are_refused():
    with pytest.raises(UserError, match="below"):
        Interval(0.7, 0.3)
    with pytest.raises(UserError, match="did you mean 'log_snr'"):
        Interval(0.3, 0.7, of="logsnr")


# --- all -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("interval", [None, Interval(0.3, 0.7)])
def test_a_sample_does_not_depend_on_the_batch_split_bit_for_bit(denoiser, path, guidance, rescale, interval):
    z, _, condition = question()
    sampler, chosen = DDPM(6), replace(guidance, rescale=rescale, interval=interval)

    def sample(part: slice) -> Tensor:
        own = {"class": condition["class"][part]}
        return sampler(chosen(denoiser, own), path, z[part], Streams(0, torch.arange(40)[part]))

    assert torch.equal(sample(slice(40)), torch.cat([sample(slice(0, 7)), sample(slice(7, 40))]))
