"""Bricks: norms, time, resolution, attention, and the counting of their cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm_lightning.errors import UserError
from ldm_lightning.nn.attention import CrossAttention, SelfAttention, SpatialAttention
from ldm_lightning.nn.context import EMPTY, Context
from ldm_lightning.nn.count import multiply_adds, parameters
from ldm_lightning.nn.layers import ResBlock, TimeEmbedding, Upsample, downsample, group_norm


@pytest.mark.parametrize("channels", [1, 3, 7, 12, 30, 64, 100, 127, 256, 1000])
def test_group_norm_fits_any_number_of_channels(channels: int) -> None:
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups == 1 or channels // norm.num_groups >= 4
    assert norm(torch.randn(2, channels, 4, 4)).mean().abs() < 1e-5


def test_group_norm_makes_32_groups_where_it_can() -> None:
    assert [group_norm(channels).num_groups for channels in (16, 128, 1024)] == [4, 32, 32]


def test_neighbouring_times_are_told_apart_even_in_bfloat16() -> None:
    embed = TimeEmbedding(32).bfloat16()
    t = torch.tensor([0.905, 0.906])  # one step of a thousand; equal once rounded to bfloat16
    assert t.bfloat16().unique().numel() == 1
    first, second = embed(t, EMPTY).float()
    assert (first - second).abs().max() > 1e-2


def test_time_needs_the_vector_it_was_built_for() -> None:
    with pytest.raises(UserError, match="built with vector_width but the context holds none"):
        TimeEmbedding(8, vector_width=4)(torch.rand(2), EMPTY)
    with pytest.raises(UserError, match="built without vector_width but the context holds one"):
        TimeEmbedding(8)(torch.rand(2), Context(vector=torch.rand(2, 4)))


def test_residual_blocks_start_as_the_identity() -> None:
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(ResBlock(8, 8)(x), x)
    assert torch.equal(ResBlock(8, 8, embedding_width=4)(x, torch.randn(2, 4)), x)


def test_resolution_halves_upwards_and_doubles_or_fits() -> None:
    x = torch.randn(2, 4, 7, 6)
    small = downsample(4, 8)(x)
    assert small.shape == (2, 8, 4, 3)
    assert Upsample(8, 4)(small).shape == (2, 4, 8, 6)
    assert Upsample(8, 4)(small, size=(7, 6)).shape == x.shape


def test_self_attention_is_equivariant_to_order() -> None:
    attention = SelfAttention(16, 4)
    x, order = torch.randn(2, 6, 16), torch.randperm(6)
    torch.testing.assert_close(attention(x)[:, order], attention(x[:, order]), rtol=1e-4, atol=1e-5)


def test_spatial_attention_reads_every_pixel_of_its_own_image(shaken) -> None:
    attention = shaken(SpatialAttention(8, 2))
    x = torch.randn(2, 8, 3, 4)
    other = x.clone()
    other[0, :, 2, 3] = 0
    changed = (attention(x) - attention(other)).abs().amax(dim=1)
    assert changed[0].min() > 0
    assert changed[1].max() == 0


def test_self_attention_skips_masked_tokens() -> None:
    attention = SelfAttention(16, 4)
    x, mask = torch.randn(2, 6, 16), torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    torch.testing.assert_close(attention(x, mask)[0, :4], attention(x[:1, :4])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention(x, mask)[1], attention(x)[1], rtol=1e-4, atol=1e-5)


def test_cross_attention_skips_masked_tokens() -> None:
    attention = CrossAttention(16, 4, token_width=6)
    x, tokens = torch.randn(2, 5, 16), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    other = tokens.clone()
    other[:, 1] += 10
    before, after = attention(x, Context(None, tokens, mask)), attention(x, Context(None, other, mask))
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-3


def test_cross_attention_needs_tokens() -> None:
    with pytest.raises(UserError, match="the context holds no tokens"):
        CrossAttention(16, 4, token_width=6)(torch.randn(2, 5, 16), EMPTY)


def test_attention_logits_are_bounded_however_large_the_input() -> None:
    attention = SelfAttention(16, 4)
    x = torch.randn(2, 6, 16)
    with torch.no_grad():
        attention.project.bias.zero_()
        attention.out.bias.zero_()
    # Queries and keys lose their scale, values keep it: the output is linear in the scale of the input.
    torch.testing.assert_close(attention(1000 * x), 1000 * attention(x), rtol=2e-2, atol=1.0)


def test_counts_agree_with_arithmetic() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1)
    assert parameters(conv) == 3 * 5 * 9 + 5
    assert multiply_adds(conv, torch.zeros(2, 3, 6, 7)) == 2 * 3 * 5 * 9 * 6 * 7
    attention = SelfAttention(16, 4)
    projections, products = 10 * 4 * 16 * 16, 2 * 10 * 10 * 16
    assert multiply_adds(attention, torch.zeros(1, 10, 16)) == projections + products
    attention.project.requires_grad_(False)
    assert parameters(attention) == 16 * 16 + 16 + 2 * 4
