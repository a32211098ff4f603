"""What every backbone promises: zero at the start, every input matters, samples do not mix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.nn import (
    CaptionTokens,
    ClassTokens,
    ClassVector,
    ConditionalNetwork,
    Conditioners,
    DiT,
    NoCondition,
    UNet,
)

BATCH = 5
CLASSES = 7

CONDITIONERS = {
    "none": NoCondition,
    "vector": lambda: ClassVector(CLASSES, 12),
    "tokens": lambda: ClassTokens(CLASSES, 20),
    "caption": lambda: CaptionTokens(16, length=6, depth=1),
    "all": lambda: Conditioners(
        [ClassVector(CLASSES, 12), ClassTokens(CLASSES, 16), CaptionTokens(16, length=6, depth=1)]
    ),
}
BACKBONES = {
    "unet": lambda **widths: UNet(3, channels=(8, 16), blocks=1, attention=(False, True), heads=2, **widths),
    "unet_flat": lambda **widths: UNet(3, channels=(16,), blocks=1, attention=(False,), heads=2, **widths),
    "dit": lambda **widths: DiT(3, patch=1, width=16, depth=2, heads=2, **widths),
    "dit_patch2": lambda **widths: DiT(3, patch=2, width=16, depth=2, heads=2, **widths),
}

backbones = pytest.mark.parametrize("backbone", BACKBONES)
conditioners = pytest.mark.parametrize("conditioner", CONDITIONERS)


def build(backbone: str, conditioner: str) -> ConditionalNetwork:
    condition = CONDITIONERS[conditioner]()
    return ConditionalNetwork(
        BACKBONES[backbone](vector_width=condition.vector_width, token_width=condition.token_width), condition
    )


def inputs(side: int = 6) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    condition = {"class": torch.arange(BATCH) % CLASSES, "caption": torch.randint(1, 257, (BATCH, 6))}
    condition["caption"][0, 2:] = 0
    return torch.randn(BATCH, 3, side, side), torch.linspace(0, 1, BATCH), condition


@conditioners
@backbones
def test_the_initial_output_is_exactly_zero(backbone: str, conditioner: str) -> None:
    z, t, condition = inputs()
    out = build(backbone, conditioner)(z, t, condition)
    assert out.shape == z.shape
    assert torch.equal(out, torch.zeros_like(z))


@conditioners
@backbones
def test_gradients_reach_every_parameter(backbone: str, conditioner: str, shaken) -> None:
    network = shaken(build(backbone, conditioner))
    z, t, condition = inputs()
    drop = torch.arange(BATCH) == 1
    network(z, t, condition, drop).square().sum().backward()
    # A single token gets all the attention, whatever the query: there the softmax has no gradient.
    constant = ("query", "key_norm") if conditioner == "tokens" else ()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if not ("cross" in name and any(word in name for word in constant)):
            assert parameter.grad.abs().max() > 0, name


@conditioners
@backbones
def test_without_drop_every_parameter_still_takes_part(backbone: str, conditioner: str) -> None:
    # DistributedDataParallel stops at a parameter without a gradient.
    network = build(backbone, conditioner)
    network(*inputs()).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("conditioner", [name for name in CONDITIONERS if name != "none"])
@backbones
def test_the_condition_matters(backbone: str, conditioner: str, shaken) -> None:
    network = shaken(build(backbone, conditioner))
    z, t, condition = inputs()
    other = {"class": (condition["class"] + 1) % CLASSES, "caption": condition["caption"].clamp(max=1)}
    changed = (network(z, t, condition) - network(z, t, other)).abs().amax(dim=(1, 2, 3))
    assert changed.min() > 1e-4


@backbones
def test_the_time_matters(backbone: str, shaken) -> None:
    network = shaken(build(backbone, "vector"))
    z, t, condition = inputs()
    changed = (network(z, t, condition) - network(z, t + 0.01, condition)).abs().amax(dim=(1, 2, 3))
    assert changed.min() > 1e-4


@conditioners
@backbones
def test_samples_do_not_mix(backbone: str, conditioner: str, shaken) -> None:
    network = shaken(build(backbone, conditioner))
    z, t, condition = inputs()
    together = network(z, t, condition)
    for i in range(BATCH):
        alone = network(z[i : i + 1], t[i : i + 1], {name: value[i : i + 1] for name, value in condition.items()})
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conditioner", [name for name in CONDITIONERS if name != "none"])
@backbones
def test_dropping_some_samples_mixes_the_rows_of_dropping_none_and_all(backbone: str, conditioner: str, shaken) -> None:
    network = shaken(build(backbone, conditioner))
    z, t, condition = inputs()
    kept = network(z, t, condition)
    dropped = network(z, t, condition, torch.ones(BATCH, dtype=torch.bool))
    assert (kept - dropped).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    torch.testing.assert_close(network(z, t, condition, torch.zeros(BATCH, dtype=torch.bool)), kept)
    for bits in (0b00101, 0b10010, 0b01110):
        drop = (bits >> torch.arange(BATCH)) % 2 == 1
        expected = torch.where(drop[:, None, None, None], dropped, kept)
        torch.testing.assert_close(network(z, t, condition, drop), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conditioner", [name for name in CONDITIONERS if name != "none"])
@backbones
def test_a_dropped_condition_cannot_be_seen(backbone: str, conditioner: str, shaken) -> None:
    network = shaken(build(backbone, conditioner))
    z, t, condition = inputs()
    other = {"class": (condition["class"] + 1) % CLASSES, "caption": condition["caption"].flip(0)}
    drop = torch.ones(BATCH, dtype=torch.bool)
    torch.testing.assert_close(network(z, t, condition, drop), network(z, t, other, drop), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(7, 7), (5, 9), (1, 3), (8, 2)])
def test_the_unet_takes_any_size(size: tuple[int, int], shaken) -> None:
    network = shaken(UNet(3, channels=(8, 8, 8), blocks=1, attention=(False, False, True), heads=2))
    network = ConditionalNetwork(network, NoCondition())
    out = network(torch.randn(2, 3, *size), torch.rand(2), {})
    assert out.shape == (2, 3, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize("size", [(4, 6), (8, 2)])
def test_dit_takes_any_multiple_of_its_patch(size: tuple[int, int], shaken) -> None:
    network = ConditionalNetwork(shaken(DiT(3, patch=2, width=16, depth=1, out_channels=5)), NoCondition())
    assert network(torch.randn(2, 3, *size), torch.rand(2), {}).shape == (2, 5, *size)


def test_dit_names_a_patch_that_fits() -> None:
    network = ConditionalNetwork(DiT(3, patch=4, width=16, depth=1), NoCondition())
    with pytest.raises(UserError, match=r"6x8.*4x4.*patch=2"):
        network(torch.randn(2, 3, 6, 8), torch.rand(2), {})


def test_dit_patches_come_back_where_they_were_cut() -> None:
    dit = DiT(1, patch=2, width=16, depth=0)
    with torch.no_grad():
        dit.patchify.weight.zero_()
        dit.patchify.bias.zero_()
        dit.patchify.weight[:4] = 1e4 * torch.eye(4)  # drowns the positions, survives the norm's centring
        dit.unpatchify.weight[:, :4] = torch.eye(4)
    z = torch.zeros(1, 1, 6, 4)
    z[0, 0, 3, 2] = 1
    out = ConditionalNetwork(dit, NoCondition())(z, torch.zeros(1), {})
    assert out.argmax() == z.argmax()


def test_dit_tells_positions_apart(shaken) -> None:
    network = ConditionalNetwork(shaken(DiT(3, width=16, depth=1)), NoCondition())
    out = network(torch.ones(1, 3, 4, 4), torch.zeros(1), {})[0, 0].flatten()
    assert len(out.unique()) == 16


@backbones
def test_bfloat16_is_finite_and_near_float32(backbone: str, shaken) -> None:
    network = shaken(build(backbone, "all"))
    z, t, condition = inputs(4)
    exact = network(z, t, condition)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(z, t, condition)
    pure = network.bfloat16()(z.bfloat16(), t, condition)
    assert pure.dtype == torch.bfloat16
    for rounded in (mixed, pure):
        assert (rounded.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["unet", "dit"])
def test_the_compiler_finds_one_unbroken_graph(backbone: str, shaken) -> None:
    network = shaken(build(backbone, "all"))
    z, t, condition = inputs(4)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z, t, condition), network(z, t, condition))


@pytest.mark.parametrize("backbone", ["unet", "dit"])
def test_a_width_the_backbone_does_not_expect_is_refused(backbone: str) -> None:
    with pytest.raises(UserError, match=r"vector_width=None.*gives 12; set the backbone's vector_width to 12"):
        ConditionalNetwork(BACKBONES[backbone](), ClassVector(CLASSES, 12))
    with pytest.raises(UserError, match=r"token_width=8.*gives None"):
        ConditionalNetwork(BACKBONES[backbone](token_width=8), NoCondition())


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="3 attention heads do not divide the width 16; use heads=2"):
        DiT(3, width=16, heads=3)
    with pytest.raises(UserError, match="width 3 is too small to tell positions apart; use width=4"):
        DiT(3, width=3, heads=1)
    with pytest.raises(UserError, match="attention has 2 entries but channels has 3"):
        UNet(3, channels=(8, 16, 32), attention=(False, True))
