"""Conditioners: contexts, nulls, masks, and the errors a batch can cause."""

from __future__ import annotations

import pytest
import torch

from ldm_lightning.errors import UserError
from ldm_lightning.nn import CaptionTokens, ClassTokens, ClassVector, Conditioners, NoCondition

LABELS = {"class": torch.tensor([0, 3, 3, 1])}
DROP = torch.tensor([True, False, True, False])


def captions(*texts: str, length: int = 8) -> dict[str, torch.Tensor]:
    rows = [[byte + 1 for byte in text.encode()] for text in texts]
    return {"caption": torch.tensor([row + [0] * (length - len(row)) for row in rows])}


def test_no_condition_is_empty_whatever_the_batch_holds() -> None:
    context = NoCondition()(LABELS, DROP)
    assert context.vector is context.tokens is context.mask is None


@pytest.mark.parametrize("kind", [ClassVector, ClassTokens])
def test_classes_look_up_their_row_and_dropped_ones_the_null(kind: type) -> None:
    conditioner = kind(4, 6)
    context = conditioner(LABELS, DROP)
    embedded = context.vector if kind is ClassVector else context.tokens[:, 0]
    table, null = conditioner.embedding.table.weight, conditioner.embedding.null
    assert torch.equal(embedded, torch.stack([null, table[3], null, table[1]]))
    assert (conditioner.vector_width, conditioner.token_width) == ((6, None) if kind is ClassVector else (None, 6))


@pytest.mark.parametrize("kind", [ClassVector, ClassTokens])
@pytest.mark.parametrize("label", [4, 5, -1])
def test_classes_out_of_range_are_refused(kind: type, label: int) -> None:
    with pytest.raises(UserError, match=rf"classes {min(label, 0)} to {max(label, 0)}.*num_classes=4"):
        kind(4, 6)({"class": torch.tensor([0, label])})


@pytest.mark.parametrize("kind", [lambda: ClassVector(4, 6), lambda: ClassTokens(4, 6), lambda: CaptionTokens(8)])
def test_a_missing_condition_is_named_with_those_at_hand(kind) -> None:
    with pytest.raises(UserError, match="the batch holds 'depth', 'pose'"):
        kind()({"pose": torch.zeros(2), "depth": torch.zeros(2)})
    with pytest.raises(UserError, match="the batch holds none"):
        kind()({})


def test_captions_differ_by_their_bytes_and_their_order() -> None:
    tokens = CaptionTokens(16)(captions("ab", "ba", "ac")).tokens
    first = tokens[:, 0]
    assert (first[0] - first[1]).abs().max() > 1e-3
    assert (first[0] - first[2]).abs().max() > 1e-3


def test_captions_do_not_see_their_padding() -> None:
    conditioner = CaptionTokens(16)
    short, long = conditioner(captions("héy", length=4)), conditioner(captions("héy", length=20))
    torch.testing.assert_close(short.tokens[short.mask], long.tokens[long.mask])
    assert short.mask.sum() == 5  # begin, h, two bytes of é, y


def test_an_empty_caption_is_not_the_null_and_both_are_finite() -> None:
    conditioner = CaptionTokens(16)
    empty = conditioner(captions("", ""), torch.tensor([False, True]))
    assert empty.mask.sum(dim=1).tolist() == [1, 1]
    assert empty.tokens.isfinite().all()
    assert (empty.tokens[0, 0] - empty.tokens[1, 0]).abs().max() > 1e-2


def test_captions_too_long_are_refused() -> None:
    with pytest.raises(UserError, match=r"20 bytes.*length=8; set length=20"):
        CaptionTokens(16, length=8)(captions("a", length=20))


def test_combined_conditioners_sum_vectors_and_join_tokens() -> None:
    vectors = [ClassVector(4, 6), ClassVector(4, 6)]
    tokens = [ClassTokens(4, 8), CaptionTokens(8, depth=1)]
    condition = LABELS | captions("a", "bc", "", "d", length=3)
    combined = Conditioners([*vectors, *tokens])
    assert (combined.vector_width, combined.token_width) == (6, 8)
    context = combined(condition, DROP)
    torch.testing.assert_close(context.vector, vectors[0](condition, DROP).vector + vectors[1](condition, DROP).vector)
    torch.testing.assert_close(context.tokens, torch.cat([part(condition, DROP).tokens for part in tokens], dim=1))
    assert context.mask.sum(dim=1).tolist() == [2, 4, 2, 3]  # class and begin, and the bytes that are not dropped


def test_tokens_without_masks_stay_without() -> None:
    assert Conditioners([ClassTokens(4, 8), ClassTokens(4, 8)])(LABELS).mask is None
    context = Conditioners([])(LABELS)
    assert context.vector is context.tokens is context.mask is None


@pytest.mark.parametrize(("kind", "name"), [(ClassVector, "vector_width"), (ClassTokens, "token_width")])
def test_combined_conditioners_need_one_width(kind: type, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} \[6, 8\]"):
        Conditioners([kind(4, 8), kind(4, 6)])
