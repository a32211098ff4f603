"""Perceptual distances: how different two pictures look to a network that was trained to see.

LPIPS (Zhang et al. 2018) compares features of five depths, each normalized to unit length over its channels, by a
squared difference whose channels are weighted as human judgements taught:

    d(x, y) = sum over depths l of mean over positions of sum over channels c of w_lc (f_lc(x) - f_lc(y))^2

A picture moved by one pixel looks the same, yet strided layers answer it very differently. The shift-tolerant variant
(Ghildyal & Liu 2022) never drops a position without blurring first, and reads the picture at stride 1. Its weights
come inside a package (extra ``offline``), whose data alone are read: its code is never run.

Both classes here are called with (reconstruction, picture), (B, C, H, W) in [-1, 1] with C = 1 or 3, and answer the
mean over the batch, a differentiable scalar; ``label`` names the figure. They are held outside the module in training
(no checkpoint, optimizer or average shall carry their weights), so they follow the pictures to their device by
themselves.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError, needs_extra

__all__ = ["Lpips", "ShiftTolerantLpips"]

_PACKAGE = "stlpips_pytorch"
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # pictures in [-1, 1] -> as the networks were trained


class _Blur(nn.Module):
    """Every second pixel of the picture blurred by the binomial filter (1, 2, 1)^2 / 16, mirrored at the border."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(line, line), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _conv(in_channels: int, out_channels: int, size: int, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, size, padding=padding), nn.ReLU()]


def _alex() -> list[list[nn.Module]]:
    """AlexNet's convolutions; the first at stride 1, its blur before the ReLU."""
    first, relu = _conv(3, 64, 11, 2)
    return [
        [first, _Blur(), relu],
        [nn.MaxPool2d(3, 1), _Blur(), *_conv(64, 192, 5, 2)],
        [nn.MaxPool2d(3, 1), _Blur(), *_conv(192, 384, 3, 1)],
        _conv(384, 256, 3, 1),
        _conv(256, 256, 3, 1),
    ]


def _vgg() -> list[list[nn.Module]]:
    """VGG-16's convolutions."""
    stages: list[list[nn.Module]] = []
    before = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        stage: list[nn.Module] = [nn.MaxPool2d(2, 1), _Blur()] if stages else []
        for number in range(depth):
            stage += _conv(width if number else before, width, 3, 1)
        stages.append(stage)
        before = width
    return stages


_NETWORKS = {"alex": _alex, "vgg": _vgg}


class ShiftTolerantLpips(nn.Module):
    """Shift-tolerant LPIPS (Ghildyal & Liu 2022), with their weights.

    Args:
        network: "alex", fast, or "vgg", slower and smoother.
        resize: side in pixels that smaller pictures are brought to first, by bilinear interpolation; the weights were
            taught on 64 x 64. None takes pictures as they are.

    Raises:
        UserError: no such network, or the package with the weights (extra ``offline``) is not installed.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: str = "alex", resize: int | None = None) -> None:
        super().__init__()
        if network not in _NETWORKS:
            raise UserError(f"perceptual.network={network}: choose one of {', '.join(_NETWORKS)}")
        weights = _read_weights(network)
        self.network, self.resize = network, resize
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in _NETWORKS[network]())
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.channels = nn.ParameterList(weights[f"lin{depth}.model.1.weight"] for depth in range(len(self.stages)))
        stored = [value for name, value in weights.items() if name.startswith("net.") and not name.endswith(".filt")]
        with torch.no_grad():
            for parameter, value in zip(self.stages.parameters(), stored, strict=True):
                parameter.copy_(value)
        self.eval().requires_grad_(False)

    def label(self, size: Sequence[int]) -> str:
        """Name of the figure for pictures of ``size`` (H, W), with the side that they are enlarged to, if they are."""
        return f"st_lpips_{self.network}" + (f"_{self.resize}" if self._seen(size) != list(size) else "")

    def _seen(self, size: Sequence[int]) -> list[int]:
        """The size at which pictures of ``size`` are looked at."""
        return [max(side, self.resize or 0) for side in size]

    def features(self, x: Tensor) -> list[Tensor]:
        """Five float32 maps (B, C_l, h_l, w_l), of unit length over their channels, of pictures (B, 1 or 3, H, W).

        Raises:
            UserError: other channels than 1 or 3, or pictures too small for the network.
        """
        x = _rgb(x)
        if (size := self._seen(x.shape[2:])) != list(x.shape[2:]):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        h, maps = (x - self.shift) / self.scale, []
        for stage in self.stages:
            try:
                h = stage(h)
            except RuntimeError as error:
                if "adding size" not in str(error) and "too small" not in str(error):
                    raise
                height, width = x.shape[2:]
                raise UserError(
                    f"pictures of {height}x{width} are too small for the perceptual network: set perceptual.resize=64, "
                    "in training first_stage.loss.perceptual.resize=64"
                ) from error
            maps.append(F.normalize(h.float(), dim=1, eps=1e-6))
        return maps

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) distances of the pictures ``x`` and ``y``."""
        if self.shift.device != x.device:
            self.to(x.device)
        pairs = zip(self.channels, self.features(x), self.features(y), strict=True)
        return torch.stack([((f - g).square() * w).sum(1).mean((1, 2)) for w, f, g in pairs]).sum(0)

    def forward(self, reconstruction: Tensor, x: Tensor) -> Tensor:
        """Mean distance of a batch, a scalar."""
        return self.distances(reconstruction, x).mean()


class Lpips:
    """The original LPIPS by torchmetrics; torchvision brings the network and downloads its weights once.

    Args:
        network: "alex", "vgg" or "squeeze".

    Raises:
        UserError: torchvision (extra ``fid``) is not installed, or there is no such network.
    """

    def __init__(self, network: str = "vgg") -> None:
        if importlib.util.find_spec("torchvision") is None:
            raise needs_extra("torchvision", "fid")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            metric: Any = LearnedPerceptualImagePatchSimilarity(net_type=network)  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"perceptual.network={network}: {error}") from error
        self._kind = network
        self.network = metric.net.requires_grad_(False)

    def label(self, size: Sequence[int]) -> str:
        """Name of the figure, for pictures of any ``size``."""
        return f"lpips_{self._kind}"

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) distances of the pictures ``x`` and ``y``."""
        distances: Tensor = self.network.to(x.device)(_rgb(x), _rgb(y))
        return distances.flatten()

    def __call__(self, reconstruction: Tensor, x: Tensor) -> Tensor:
        """Mean distance of a batch, a scalar."""
        return self.distances(reconstruction, x).mean()


def _rgb(x: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W); grey is repeated."""
    if x.shape[1] not in (1, 3):
        raise UserError(f"a perceptual distance needs pictures of 1 or 3 channels, not {x.shape[1]}")
    return x.expand(-1, 3, -1, -1)


def _read_weights(network: str) -> dict[str, Tensor]:
    """The weight file inside the package, which is found without importing it."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders: Sequence[str] = (spec.submodule_search_locations or ()) if spec else ()
    for folder in folders:
        path = Path(folder) / "weights" / "vST0.0" / f"{network}_shift_tolerant.pth"
        if path.is_file():
            weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
            return weights
    raise needs_extra(_PACKAGE, "offline")
