"""The two halves of an autoencoder of diffusers, as the codec of a first stage.

What lies between the halves is the bottleneck's affair: moments become a Gaussian, features the nearest vectors of a
book. So an autoencoder is cut where its latents are:

======================= ========================= ==================================== ========================
class                   published as              encoder's output                     bottleneck
======================= ========================= ==================================== ========================
``AutoencoderKL``       Rombach et al. (2022)     means and log-variances              ``Gaussian``
``VQModel``             Esser et al. (2021)       what is quantized                    ``VectorQuantizer``
``AutoencoderDC``       Chen et al. (2024)        latents                              ``Identity``, measured
======================= ========================= ==================================== ========================

The modules inside keep their names, so that weights go from one format to the other by a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ldm_lightning.errors import UserError, nearest, needs_extra
from ldm_lightning.nn.conv_codec import check_size

__all__ = ["MODELS", "DiffusersDecoder", "DiffusersEncoder", "build_model", "latent_channels"]

MODELS = ("AutoencoderKL", "VQModel", "AutoencoderDC")


class DiffusersEncoder(nn.Module):
    """Images (B, in_channels, H, W) in [-1, 1] -> features (B, out_channels, H / factor, W / factor).

    Args:
        in_channels: channels of the image.
        out_channels: channels of the features.
        model: class in diffusers, one of :data:`MODELS`.
        config: arguments of its constructor, as in its ``config.json``.

    Attributes:
        factor: pixels per latent along a side.

    Raises:
        UserError: diffusers is missing, does not build this, or it has other channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, model: str, config: Mapping[str, Any]) -> None:
        super().__init__()
        whole = build_model(model, config)
        moments = 2 if model == "AutoencoderKL" else 1
        _check_channels(
            model, (whole.config["in_channels"], in_channels), (moments * latent_channels(whole), out_channels)
        )
        self.model, self.config = model, dict(config)
        levels = "encoder_block_out_channels" if model == "AutoencoderDC" else "block_out_channels"
        self.factor = int(2 ** (len(whole.config[levels]) - 1))
        self.encoder = whole.encoder
        self.quant_conv = getattr(whole, "quant_conv", None) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x``.

        Raises:
            UserError: ``factor`` does not divide H and W.
        """
        check_size(x, self.factor)
        out: Tensor = self.quant_conv(self.encoder(x))
        return out


class DiffusersDecoder(nn.Module):
    """Latents (B, in_channels, h, w) -> images (B, out_channels, h * factor, w * factor).

    Args:
        in_channels: channels of the latents.
        out_channels: channels of the image.
        model: as in the encoder.
        config: as in the encoder.

    Raises:
        UserError: as in the encoder.
    """

    def __init__(self, in_channels: int, out_channels: int, *, model: str, config: Mapping[str, Any]) -> None:
        super().__init__()
        whole = build_model(model, config)
        pictures = whole.config.get("out_channels", whole.config["in_channels"])
        _check_channels(model, (pictures, out_channels), (latent_channels(whole), in_channels))
        self.post_quant_conv = getattr(whole, "post_quant_conv", None) or nn.Identity()
        self.decoder = whole.decoder
        self.sees_latents = whole.config.get("norm_type") == "spatial"  # norms modulated by them (Zheng et al. 2022)

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``z``."""
        h = self.post_quant_conv(z)
        out: Tensor = self.decoder(h, z) if self.sees_latents else self.decoder(h)
        return out


def build_model(model: str, config: Mapping[str, Any]) -> Any:
    """diffusers' autoencoder of class ``model``, untrained.

    Raises:
        UserError: it is none of :data:`MODELS`, diffusers is missing, or refuses ``config``.
    """
    if model not in MODELS:
        raise UserError(f"'{model}' is none of the supported classes {', '.join(MODELS)}{nearest(model, MODELS)}")
    try:
        import diffusers
    except ImportError as error:
        raise needs_extra("diffusers", "diffusers") from error
    try:
        return getattr(diffusers, model)(**config)
    except (TypeError, ValueError, IndexError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"diffusers {diffusers.__version__} builds no {model} of this configuration: {reason}"
        ) from error


def latent_channels(whole: Any) -> int:
    """Channels of a latent of a model of diffusers."""
    return int(whole.config.get("vq_embed_dim") or whole.config["latent_channels"])


def _check_channels(model: str, pictures: tuple[int, int], latents: tuple[int, int]) -> None:
    """Compare the channels that ``model`` has with those that are asked for."""
    if pictures[0] != pictures[1]:
        mend = f": set data.transform.channels={pictures[0]}" if pictures[0] in (1, 3) else ""
        raise UserError(f"this {model} is for pictures with {pictures[0]} channels, but these have {pictures[1]}{mend}")
    if latents[0] != latents[1]:
        raise UserError(
            f"this {model} has {latents[0]} channels at the bottleneck, which is made for {latents[1]}: "
            "choose a bottleneck of its kind, and equal latent_channels"
        )
