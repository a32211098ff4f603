"""Networks: plain torch modules, without a word of Lightning or of diffusion.

A *conditioner* turns the conditions of a batch into a *context*, a *backbone* (``UNet``, ``DiT``) reads it, and a
``ConditionalNetwork`` joins the two. Codecs (``ConvEncoder`` and ``ConvDecoder``, ``DeepEncoder`` and
``DeepDecoder``; ``DiffusersEncoder`` and ``DiffusersDecoder``) are the two halves of a first stage.
"""

from ldm_lightning.nn.conditioner import (
    CaptionTokens,
    ClassTokens,
    ClassVector,
    Conditioner,
    Conditioners,
    NoCondition,
)
from ldm_lightning.nn.context import Context
from ldm_lightning.nn.conv_codec import ConvDecoder, ConvEncoder
from ldm_lightning.nn.deep_codec import DeepDecoder, DeepEncoder
from ldm_lightning.nn.diffusers_codec import DiffusersDecoder, DiffusersEncoder
from ldm_lightning.nn.dit import DiT
from ldm_lightning.nn.identity_codec import IdentityCodec
from ldm_lightning.nn.network import ConditionalNetwork
from ldm_lightning.nn.unet import UNet

__all__ = [
    "CaptionTokens",
    "ClassTokens",
    "ClassVector",
    "ConditionalNetwork",
    "Conditioner",
    "Conditioners",
    "Context",
    "ConvDecoder",
    "ConvEncoder",
    "DeepDecoder",
    "DeepEncoder",
    "DiT",
    "DiffusersDecoder",
    "DiffusersEncoder",
    "IdentityCodec",
    "NoCondition",
    "UNet",
]
