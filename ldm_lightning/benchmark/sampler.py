"""What a sampler adds to the network: n evaluations inside its loop against n bare calls.

Both alternate in one process, so that whatever else the machine does meets both alike. Two networks are asked: one
that answers at once, which leaves the loop alone (schedule, conversions, noise, updates), and a real one. What is
measured is all of :meth:`LatentDiffusion.sample` between the prior and the decoder: guidance, denoiser and sampler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.path import Path
from ldm_lightning.diffusion.prediction import Prediction
from ldm_lightning.diffusion.sampler import AdaptiveODE, Sampler
from ldm_lightning.nn import ConditionalNetwork, NoCondition
from ldm_lightning.rng import Streams

__all__ = ["measure_samplers"]


class _Free(nn.Module):
    """A network that answers at once."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Tensor:
        return self.answer


class _Counted(nn.Module):
    """A network that knows how often it was asked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Tensor:
        self.calls += 1
        answer: Tensor = self.network(z, t, condition, drop)
        return answer


def measure_samplers(
    samplers: Mapping[str, Sampler],
    backbone: nn.Module,
    path: Path,
    prediction: Prediction,
    *,
    shape: tuple[int, ...],
    batch_size: int,
    steps: int,
    rounds: int,
    device: torch.device,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """One row a sampler, and for the protocol what they were measured with.

    Args:
        samplers: by name, all for this path.
        backbone: a network without conditions.
        path: that is walked.
        prediction: what the network is taken to predict, one output a latent.
        shape: (C, *space) of one latent.
        batch_size: latents at once.
        steps: of a sampler that does not choose them itself.
        rounds: how often loop and bare calls take turns; figures are medians.
        device: where all of it runs.
    """
    streams = Streams(0, torch.arange(batch_size, device=device))
    z = path.prior(streams, shape)
    networks = {"free": _Free(torch.zeros_like(z)), "real": ConditionalNetwork(backbone, NoCondition())}
    denoisers = {name: Denoiser(net, path, prediction).eval().to(device) for name, net in networks.items()}
    rows = {}
    for name, sampler in tqdm(samplers.items(), desc="benchmark", unit="sampler"):
        chosen = {} if isinstance(sampler, AdaptiveODE) else {"steps": steps}  # there they are only a bound
        rows[name] = _compare(replace(sampler, **chosen), denoisers, path, z, streams, rounds=rounds)
    parameters = sum(weight.numel() for weight in backbone.parameters())
    return rows, {
        "steps": steps,
        "batch_size": batch_size,
        "rounds": rounds,
        "latents": "x".join(map(str, shape)),
        "network": f"{type(backbone).__name__}, {parameters} parameters",
        "path": " ".join(str(path).split()),
        "prediction": str(prediction),
        "precision": str(z.dtype).removeprefix("torch."),
        "clock": "of the processor" if _clock(z.device) is time.process_time else "of the wall",
    }


@torch.no_grad()
def _compare(
    sampler: Sampler, denoisers: Mapping[str, Denoiser], path: Path, z: Tensor, streams: Streams, *, rounds: int
) -> dict[str, Any]:
    """The row of one sampler."""
    clock, t, calls = _clock(z.device), torch.full((len(z),), 0.5, device=z.device), 0
    seconds: dict[str, list[float]] = {key: [] for key in ("free", "real", "bare")}
    for _ in range(rounds + 1):
        for name, denoiser in denoisers.items():
            counted = _Counted(denoiser.network)
            denoise = ClassifierFree()(Denoiser(counted, path, denoiser.prediction), {})
            start = clock()
            sampler(denoise, path, z, streams)
            seconds[name].append(clock() - start)
            calls = counted.calls
        network = denoisers["real"].network
        start = clock()
        for _ in range(calls):
            network(z, t, {}, None)
        seconds["bare"].append(clock() - start)
    free, real, bare = (times[1:] for times in seconds.values())  # the first round only warms up
    return {
        "calls": calls,
        "loop, us a call": 1e6 * median(free) / calls,
        "loop / bare": median(free) / median(bare),
        "bare, ms a call": 1e3 * median(bare) / calls,
        "sampler, ms a call": 1e3 * median(real) / calls,
        "sampler / bare": median(one / other for one, other in zip(real, bare, strict=True)),
    }


def _clock(where: torch.device) -> Callable[[], float]:
    """Seconds: of the processor where one thread does the work, which others on the machine do not stretch."""

    def when_done() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    if where.type == "cuda":
        return when_done
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter
