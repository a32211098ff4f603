"""The halves of an autoencoder of diffusers fit what they are built for, or say why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm_lightning.errors import UserError
from ldm_lightning.nn import DiffusersDecoder, DiffusersEncoder

KL: dict[str, Any] = {
    "block_out_channels": [4, 4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 2,
    "latent_channels": 2,
}


def test_the_factor_is_that_of_the_resolution() -> None:
    encoder = DiffusersEncoder(3, 4, model="AutoencoderKL", config=KL)
    decoder = DiffusersDecoder(2, 3, model="AutoencoderKL", config=KL)
    features = encoder(torch.rand(1, 3, 16, 8))
    assert (encoder.factor, features.shape) == (4, (1, 4, 4, 2))
    assert decoder(features[:, :2]).shape == (1, 3, 16, 8)
    with pytest.raises(UserError, match="factor 4; use a size of 16x8 or 20x12"):
        encoder(torch.rand(1, 3, 18, 10))


@pytest.mark.parametrize(
    ("channels", "model", "changes", "message"),
    [
        ((1, 4), "AutoencoderKL", {}, r"3 channels, but these have 1: set data\.transform\.channels=3"),
        ((3, 2), "AutoencoderKL", {}, "4 channels at the bottleneck, which is made for 2"),
        ((3, 4), "VQModel", {}, "2 channels at the bottleneck, which is made for 4"),
        ((3, 4), "AutoencoderKl", {}, "did you mean 'AutoencoderKL'"),
        ((3, 4), "AutoencoderKL", {"norm_num_groups": 3}, "builds no AutoencoderKL of this configuration.*num_groups"),
        ((3, 4), "AutoencoderKL", {"widths": 3}, "builds no AutoencoderKL of this configuration.*widths"),
    ],
)
def test_what_does_not_fit_is_refused(
    channels: tuple[int, int], model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        DiffusersEncoder(*channels, model=model, config={**KL, **changes})


def test_the_decoder_checks_its_own_side() -> None:
    with pytest.raises(UserError, match="2 channels at the bottleneck, which is made for 3"):
        DiffusersDecoder(3, 3, model="AutoencoderKL", config=KL)
    with pytest.raises(UserError, match="pictures with 1 channels, but these have 3"):
        DiffusersDecoder(2, 3, model="AutoencoderKL", config={**KL, "out_channels": 1})
