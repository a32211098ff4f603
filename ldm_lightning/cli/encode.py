"""``ldm encode``: the latents of all pictures, written once for many second stages."""

from __future__ import annotations

from omegaconf import DictConfig

from ldm_lightning.experiment.encode import encode

__all__ = ["main"]


def main(config: DictConfig) -> None:
    """Encode what is not encoded yet, and say where it lies and how it is trained on."""
    root, manifest = encode(config)
    views = ", with mirror images" if manifest.shape[0] > 1 else ""
    print(f"latents of {manifest.count:,} pictures{views} ({manifest.dtype}): {root}")
    print(f"train on them: ldm train stage=latent_diffusion data=latents data.root={root}")
