"""The book of vector quantization: its averages by hand, its revivals, and that no split of a batch shows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_lightning.latent.bottleneck import VectorQuantizer
from ldm_lightning.latent.bottleneck.nearest import nearest_codes
from ldm_lightning.latent.codes import CodeUsage, bits_per_group, code_figures, count_codes, number_bits
from ldm_lightning.rng import Streams


def train(quantizer: VectorQuantizer, features: Tensor, step: int, parts: int = 1, seed: int = 0) -> None:
    index = torch.arange(len(features))
    for rows, own in zip(features.chunk(parts), index.chunk(parts), strict=True):
        quantizer.observe(quantizer(rows), Streams(seed, own, epoch=3), step)
    quantizer.advance(step)


def vectors(count: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_vector_is_found():
    torch.manual_seed(0)
    latents, book = torch.randn(4, 3, 5, 2), torch.randn(20, 3)
    codes, numbers = nearest_codes(latents, book)
    rows = latents.movedim(1, -1)
    distances = torch.cdist(rows.reshape(-1, 3), book).view(4, 5, 2, 20)
    assert torch.equal(numbers, distances.argmin(-1))
    assert torch.equal(codes.movedim(1, -1), book[numbers])


@pytest.mark.parametrize(
    ("centre", "clusters"),
    [(0.0, 0.0), (300.0, 0.0), (0.0, 300.0), (-1e4, 0.0)],
    ids=["at 0", "far", "apart", "further"],
)
def test_the_nearest_vector_is_found_wherever_the_book_lies(centre, clusters):
    """Against an exhaustive search by differences in float64: squares around 300 leave float32 no digits for them."""
    generator = torch.Generator().manual_seed(0)
    side = clusters * (2.0 * torch.arange(512).remainder(2) - 1)[:, None]
    book, rows = (centre + side + torch.randn(512, 4, generator=generator) for _ in range(2))
    _, numbers = nearest_codes(rows[:, :, None], book)
    distances = (rows.double()[:, None] - book.double()).square().sum(-1)
    assert torch.equal(numbers.flatten(), distances.argmin(1))


def test_the_averages_are_those_of_a_hand_computation():
    quantizer = VectorQuantizer(1, 2, decay=0.9, dead=0.0)
    quantizer.book.copy_(torch.tensor([[0.0], [10.0]]))
    quantizer.counts.copy_(torch.tensor([2.0, 4.0]))
    quantizer.sums.copy_(torch.tensor([[0.0], [40.0]]))
    train(quantizer, torch.tensor([1.0, 2.0, 8.0]).view(3, 1, 1), step=5)
    # N = 0.9 * (2, 4) + 0.1 * (2, 1); m = 0.9 * (0, 40) + 0.1 * (3, 8); e = m / N.
    torch.testing.assert_close(quantizer.counts, torch.tensor([2.0, 3.7]))
    torch.testing.assert_close(quantizer.sums, torch.tensor([[0.3], [36.8]]))
    torch.testing.assert_close(quantizer.book, torch.tensor([[0.15], [36.8 / 3.7]]))


def test_commitment_is_the_mean_square_and_holds_the_encoder_alone():
    quantizer = VectorQuantizer(3, 4, commitment_weight=0.3)
    features = vectors(2).requires_grad_()
    posterior = quantizer(features)
    term = posterior.terms()["commitment"]
    assert term.weight == 0.3
    torch.testing.assert_close(term.value, (features - posterior.codes).square().mean())
    (slope,) = torch.autograd.grad(term.value, features)
    torch.testing.assert_close(slope, 2 * (features - posterior.codes) / features.numel())
    assert not list(quantizer.parameters())


def test_the_first_step_fills_the_book_with_features():
    quantizer, features = VectorQuantizer(3, 16), vectors(10)
    train(quantizer, features, step=0)
    rows = features.movedim(1, -1).reshape(-1, 3)
    assert all(row in rows.tolist() for row in quantizer.book.tolist())
    assert len(quantizer.book.unique(dim=0)) == 16
    torch.testing.assert_close(quantizer.counts, torch.full((16,), 40 / 16))  # 10 pictures of 4 places
    torch.testing.assert_close(quantizer.sums / quantizer.counts[:, None], quantizer.book)


def test_dead_codes_revive_when_their_time_comes_and_not_before():
    quantizer = VectorQuantizer(3, 8, decay=0.5, restart_every=10, dead=0.1)
    train(quantizer, vectors(10), step=0)
    with torch.no_grad():
        quantizer.sums[2:] = 1e3 * quantizer.counts[2:, None]  # nobody chooses these
        quantizer.book[2:] = 1e3
    for step in range(1, 10):
        train(quantizer, vectors(10, seed=step), step)
    before = quantizer.book.clone()
    lost = quantizer.counts < 0.1 * quantizer.counts.mean()
    assert lost.sum() == 6
    train(quantizer, vectors(10, seed=10), step=10)
    assert (quantizer.book[lost] != before[lost]).any(1).all()
    rows = vectors(10, seed=10).movedim(1, -1).reshape(-1, 3)
    assert all(row in rows.tolist() for row in quantizer.book[lost].tolist())
    used = code_figures(count_codes(quantizer(vectors(10, seed=10)).numbers(), 8))
    assert used["code_usage"] == 1


def test_a_book_of_more_codes_than_features_is_filled_in_time():
    quantizer = VectorQuantizer(3, 100, decay=0.5, restart_every=1)
    for step in range(3):
        train(quantizer, vectors(12, seed=step), step)
    assert (quantizer.counts > 0).all()


@pytest.mark.parametrize("step", [0, 7])
def test_no_split_of_a_batch_shows_in_the_book(step):
    whole, split = VectorQuantizer(3, 16, restart_every=7), VectorQuantizer(3, 16, restart_every=7)
    split.load_state_dict(whole.state_dict())
    if step:
        for quantizer in (whole, split):
            train(quantizer, vectors(12), 0)
            quantizer.counts[:5] = 0  # dead
    train(whole, vectors(12, seed=1), step)
    train(split, vectors(12, seed=1), step, parts=4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_which_features_fill_the_book_depends_on_the_seed():
    books = []
    for seed in (0, 0, 1):
        quantizer = VectorQuantizer(3, 8)
        train(quantizer, vectors(12), 0, seed=seed)
        books.append(quantizer.book)
    assert torch.equal(books[0], books[1])
    assert not torch.equal(books[0], books[2])


@pytest.mark.parametrize("before", [1.0, 0.01, 1000.0])
def test_a_trained_book_goes_on_at_the_decay(before):
    """However often its codes counted before, of which an import knows nothing."""
    quantizer, features = VectorQuantizer(3, 4, decay=0.9), vectors(64)
    quantizer.counts.fill_(before)
    quantizer.sums.copy_(before * quantizer.book)
    book = quantizer.book.clone()
    _, numbers = nearest_codes(features, book)
    rows = features.movedim(1, -1)
    means = torch.stack([rows[numbers == code].mean(0) for code in range(4)])
    share = numbers.flatten().bincount(minlength=4) / numbers.numel() * 4  # of the use of an average code
    assert share.min() < 0.9 < 1.1 < share.max()
    train(quantizer, features, 0)
    pace = 0.1 * share / (0.9 * share.clamp(min=1) + 0.1 * share)  # the decay's for those used more than average
    torch.testing.assert_close(quantizer.book, book + pace[:, None] * (means - book))
    assert pace.max() == pytest.approx(0.1)


def test_a_diverged_first_step_leaves_a_trained_book_alone():
    quantizer = VectorQuantizer(3, 4)
    train(quantizer, vectors(8), 0)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    train(quantizer, vectors(8) * math.nan, 0)
    for name, value in before.items():
        assert torch.equal(quantizer.state_dict()[name], value), name


def test_a_diverged_step_leaves_the_book_alone():
    quantizer = VectorQuantizer(3, 4, restart_every=1)
    train(quantizer, vectors(8), 0)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    train(quantizer, vectors(8) * math.nan, 1)
    for name, value in before.items():
        assert torch.equal(quantizer.state_dict()[name], value), name


def test_it_finds_clusters():
    """Of four far clusters: every one has codes, and no code is left between them."""
    centres = torch.tensor([[5.0, 5], [5, -5], [-5, 5], [-5, -5]])
    quantizer = VectorQuantizer(2, 16, decay=0.8, restart_every=5)
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        which = torch.randint(4, (32,), generator=generator)
        features = centres[which] + 0.1 * torch.randn(32, 2, generator=generator)
        train(quantizer, features[:, :, None], step)
    distances = torch.cdist(centres, quantizer.book)
    assert distances.min(1).values.max() < 0.3
    assert distances.min(0).values.max() < 0.5


def test_an_evaluated_book_does_not_move():
    quantizer = VectorQuantizer(3, 8).eval()
    before = quantizer.book.clone()
    quantizer(vectors(4))
    quantizer.advance(0)
    assert torch.equal(quantizer.book, before)


# --- codes by number -------------------------------------------------------------------------------------------------


def test_bits_are_packed_lowest_first():
    bits = torch.tensor([[1, 0, 1], [0, 1, 1]]).bool()[:, :, None]
    assert number_bits(bits)[..., 0].tolist() == [[5], [6]]
    assert [bits_per_group(bits) for bits in (1, 8, 16, 17, 18, 32, 36)] == [1, 8, 16, 1, 9, 16, 12]
    wide = torch.zeros(1, 32, 1, dtype=torch.bool)
    wide[0, 16] = True
    assert number_bits(wide)[0, :, 0].tolist() == [0, 1]


def test_perplexity_and_usage():
    numbers = torch.tensor([0, 0, 1, 2]).view(4, 1, 1)
    figures = code_figures(count_codes(numbers, 8))
    assert figures["code_usage"].item() == 3 / 8
    assert figures["code_perplexity"].item() == pytest.approx(math.exp(1.5 * math.log(2)))  # H(1/2, 1/4, 1/4)
    uniform = code_figures(count_codes(torch.arange(8).view(8, 1, 1), 8))
    assert (uniform["code_usage"].item(), uniform["code_perplexity"].item()) == pytest.approx((1.0, 8.0))
    one = code_figures(count_codes(torch.zeros(9, 1, 1, dtype=torch.int64), 8))
    assert one["code_perplexity"].item() == 1


def test_usage_adds_up_over_batches_and_groups():
    usage = CodeUsage(groups=2, codes=4)
    numbers = torch.randint(4, (6, 2, 3), generator=torch.Generator().manual_seed(0))
    for part in numbers.split(2):
        usage.update(part)
    counts = torch.stack([torch.bincount(numbers[:, group].flatten(), minlength=4) for group in range(2)])
    assert torch.equal(usage.counts, counts.double())
    assert usage.compute() == code_figures(counts.double())
