"""What a first stage loses, and what its latents cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm_lightning.data.batch import Batch
from ldm_lightning.evaluation.comparison import Comparison
from ldm_lightning.evaluation.figures import Figures, number
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.codes import CodeUsage
from ldm_lightning.metrics.extractor import Extractor
from ldm_lightning.metrics.reconstruction import PictureMean, reconstruction_metrics

__all__ = ["measure_first_stage"]


@torch.no_grad()
def measure_first_stage(
    autoencoder: Autoencoder,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    perceptual: Mapping[str, nn.Module] | None = None,
    extractors: Sequence[Extractor] = (),
) -> tuple[Figures, int]:
    """Figures of reconstructions beside their originals, from batches of any number of pictures.

    Args:
        autoencoder: trained, on ``device``.
        batches: of unseen pictures.
        device: where all of it runs.
        perceptual: distances of pairs of pictures by label, such as LPIPS.
        extractors: for Frechet distances between reconstructions and originals.

    Returns:
        PSNR (dB), SSIM, perceptual distances, bits that the latents cost a pixel under their prior, use of the codes
        where there are some, Frechet distances as ``rfd_...``; and the number of pictures.
    """
    metrics, nats, count, pixels = reconstruction_metrics(), 0.0, 0, 1
    usage = CodeUsage(autoencoder.bottleneck.groups, autoencoder.bottleneck.codes)
    perceived = {label: PictureMean(module).to(device) for label, module in (perceptual or {}).items()}
    comparison = Comparison(extractors).to(device)
    for batch in batches:
        shown: Tensor = batch.x.to(device)
        posterior = autoencoder.encode(shown)
        z = posterior.mode()
        seen = autoencoder.decode(z)
        metrics.update(seen.cpu(), batch.x)
        nats += posterior.kl().sum().item() * z[0].numel()
        if (numbers := posterior.numbers()) is not None:
            usage.update(numbers.cpu())
        for metric in perceived.values():
            metric.update(seen, shown)
        comparison.update(shown, real=True)
        comparison.update(seen, real=False)
        count, pixels = count + len(batch), math.prod(shown.shape[2:])
    values = metrics.compute() | {name: metric.compute() for name, metric in perceived.items()}
    figures = {f"{name}@{count}": number(value) for name, value in values.items()}
    figures[f"latent_bits_per_pixel@{count}"] = number(nats / math.log(2) / (count * pixels))
    if autoencoder.bottleneck.codes:
        figures |= {f"{name}@{count}": number(value) for name, value in usage.compute().items()}
    figures |= {f"r{label}": number(value) for label, value in comparison.compute().items()}
    return figures, count
