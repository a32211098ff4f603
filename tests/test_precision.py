"""Constants and averages keep every digit, whatever the module around them is cast to."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ldm_lightning.diffusion.objective import AnnealedLogitNormal, LossSecondMoment
from ldm_lightning.diffusion.schedule import Shifted, TableSchedule, linear_betas
from ldm_lightning.latent.adversarial import Hinge
from ldm_lightning.latent.bottleneck import FiniteScalar, GumbelSoftmax, VectorQuantizer
from ldm_lightning.latent.scale import CodeScale, LatentScale
from ldm_lightning.precision import KeepsPrecision
from ldm_lightning.training.adversary import Adversary

MODULES: dict[str, Callable[[], nn.Module]] = {
    "table": lambda: TableSchedule(linear_betas()),
    "shifted table": lambda: Shifted(TableSchedule(linear_betas()), 2.0),
    "annealed law": lambda: AnnealedLogitNormal([0, 1001], [0.1, 0.3], [1.0, 1.1]),
    "importance": lambda: LossSecondMoment(8),
    "scale": lambda: LatentScale(torch.tensor([0.1, 300.7]), torch.tensor([1.3, 0.7])),
    "code scale": lambda: CodeScale(LatentScale(torch.tensor([0.1]), torch.tensor([1.3])), torch.round),
    "finite scalar": lambda: FiniteScalar([8, 5]),
    "book": lambda: VectorQuantizer(3, 16),
    "gumbel": lambda: GumbelSoftmax(3, 16, start=0.9),
    "adversary": lambda: Adversary(nn.Conv2d(1, 1, 3), Hinge(), start=1, join=2),
}
CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bfloat16": lambda module: module.bfloat16(),
    "half": lambda module: module.half(),
    "to": lambda module: module.to(torch.bfloat16),
    "inside": lambda module: nn.Sequential(module).to("cpu", torch.float16)[0],
    "there and back": lambda module: module.half().float(),
    "double": lambda module: module.double(),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", MODULES)
def test_no_cast_reaches_a_buffer(name: str, cast: str) -> None:
    module = MODULES[name]()
    before = {key: buffer.clone() for key, buffer in module.named_buffers()}
    assert any(buffer.is_floating_point() for buffer in before.values())
    after = dict(CASTS[cast](copy.deepcopy(module)).named_buffers())
    assert after.keys() == before.keys()
    for key, buffer in before.items():
        torch.testing.assert_close(after[key], buffer, rtol=0, atol=0)


def test_casts_reach_parameters_and_moves_reach_everything() -> None:
    class Part(KeepsPrecision):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.BatchNorm1d(2)
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("constant", torch.full((2,), 0.1))
            self.register_buffer("nothing", None)

    part = Part().bfloat16()
    assert part.weight.dtype == part.layer.weight.dtype == part.layer.running_mean.dtype == torch.bfloat16
    assert part.to("meta").constant.device == part.weight.device == torch.device("meta")
    assert part.constant.dtype == torch.float32
