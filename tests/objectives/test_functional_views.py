"""Closed forms of the losses between views, and of the figures that show a collapse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslnlp.objectives.functional import (
    alignment,
    barlow_twins,
    cosine_distance,
    effective_rank,
    false_negatives,
    info_nce,
    spread,
    uniformity,
    vicreg,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


# --- InfoNCE ---------------------------------------------------------------------------------------------------------


def test_a_temperature_may_be_a_tensor_and_learns() -> None:
    # Each query equals its document and is orthogonal to the other: log(1 + e^-s), s = 1 / temperature.
    scale = torch.tensor([2.0], requires_grad=True)
    loss, _ = info_nce(torch.eye(2), torch.eye(2), torch.arange(2), temperature=1 / scale)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    (slope,) = gradients(loss, scale)
    assert slope.item() == pytest.approx(-1 / (1 + math.exp(2)), rel=1e-5)
    # What is left out has no say in the slope: a third document, which the first query is not to be compared with.
    excluded = torch.tensor([[False, False, True], [False, False, False]])
    loss, _ = info_nce(torch.eye(2), torch.eye(3)[:, :2], torch.arange(2), temperature=1 / scale, excluded_QD=excluded)
    one, two = math.log(1 + math.exp(-2)), math.log(1 + 2 * math.exp(-2))
    assert loss.item() == pytest.approx((one + two) / 2, rel=1e-5)
    (slope,) = gradients(loss, scale)
    assert slope.item() == pytest.approx((-1 / (1 + math.exp(2)) - 2 / (2 + math.exp(2))) / 2, rel=1e-5)


@pytest.mark.parametrize("documents", [0, 3])
def test_no_query_is_no_loss_and_no_gradient(documents: int) -> None:
    queries, texts = torch.zeros(0, 4, requires_grad=True), torch.ones(documents, 4, requires_grad=True)
    loss, _ = info_nce(queries, texts, torch.zeros(0, dtype=torch.int64), temperature=0.1)
    assert loss.item() == 0
    assert all(not bool(g.any()) for g in gradients(loss, queries, texts))


def test_one_pair_by_itself_is_certain() -> None:
    loss, _ = info_nce(torch.ones(1, 4), torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), temperature=0.05)
    assert loss.item() == 0


def test_what_is_no_negative_by_any_hash() -> None:
    # Columns: what a text was made of, what is read. Candidates 0 to 2 are the pairs' own, 3 to 5 stand beside them.
    query = torch.tensor([[1, 11], [2, 12], [3, 13]])
    documents = torch.tensor([[1, 21], [2, 22], [3, 23], [9, 11], [1, 99], [8, 23]])
    assert false_negatives(query, documents, query, documents[:3]).tolist() == [
        [True, False, False, True, True, False],  # reads the same as 3, was made of the same as 4
        [False, True, False, False, False, False],
        [False, False, True, False, False, True],  # 5 reads as its own document does
    ]


def test_all_duplicates_leave_nothing_to_tell_apart() -> None:
    same = torch.full((4, 2), 7)
    excluded = false_negatives(same, same, same, same)
    loss, _ = info_nce(torch.ones(4, 3), torch.ones(4, 3), torch.arange(4), temperature=0.1, excluded_QD=excluded)
    assert loss.item() == 0


# --- without negatives -----------------------------------------------------------------------------------------------


def test_cosine_distance() -> None:
    a = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert cosine_distance(a[:1], b[:1]).item() == 0
    assert cosine_distance(a, b).item() == pytest.approx((0 + 2 + 4) / 3)
    none = torch.zeros(0, 2, requires_grad=True)
    assert cosine_distance(none, none).item() == 0


def test_cosine_distance_keeps_its_digits_in_bf16() -> None:
    torch.manual_seed(0)
    a = torch.randn(64, 256).bfloat16()
    b = (a.float() + 0.05 * torch.randn(64, 256)).bfloat16()
    exact = cosine_distance(a.double(), b.double()).item()
    assert exact < 0.004  # which in bf16 is 0, or the one number next to it
    assert cosine_distance(a, b).item() == pytest.approx(exact, rel=1e-3)


def test_barlow_of_equal_and_of_opposite_views() -> None:
    # Four rows, two features: ±1 in all combinations, so each varies and neither tells of the other.
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert barlow_twins(x, x, off_diagonal=0.5).item() == pytest.approx(0, abs=1e-6)
    assert barlow_twins(x, -x, off_diagonal=0.5).item() == pytest.approx(2 * (1 + 1) ** 2)
    # Scale and shift of a feature change nothing.
    assert barlow_twins(x, 3 * x + 7, off_diagonal=0.5).item() == pytest.approx(0, abs=1e-6)
    # The other view with its features exchanged: the diagonal is 0, both others are 1.
    assert barlow_twins(x, x.flip(1), off_diagonal=0.5).item() == pytest.approx(2 + 0.5 * 2)
    # One feature twice: its correlation with itself is 1 in all four places.
    twice = x[:, :1].expand(4, 2)
    assert barlow_twins(twice, twice, off_diagonal=0.5).item() == pytest.approx(0.5 * 2)


def test_barlow_of_what_does_not_vary() -> None:
    x = torch.ones(1, 5, requires_grad=True)
    loss = barlow_twins(x, 2 * x, off_diagonal=0.1)
    assert loss.item() == pytest.approx(5)
    assert torch.equal(gradients(loss, x)[0], torch.zeros(1, 5))
    same = torch.full((6, 5), 3.0, requires_grad=True)
    loss = barlow_twins(same, same, off_diagonal=0.1)
    assert loss.item() == pytest.approx(5)
    assert torch.isfinite(gradients(loss, same)[0]).all()
    nothing = torch.zeros(0, 5, requires_grad=True)
    assert barlow_twins(nothing, nothing, off_diagonal=0.1).item() == pytest.approx(5)


def test_the_terms_of_vicreg_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # variances 2 and 0, over N - 1
    b = torch.tensor([[1.0, 0.5], [-1.0, -0.5]])  # variances 2 and 0.5, covariance 1
    invariance, variance, covariance = vicreg(a, b)
    assert invariance.item() == pytest.approx((0.25 + 0.25) / 4)
    hinge_a = (0 + 1 - math.sqrt(1e-4)) / 2
    hinge_b = (0 + 1 - math.sqrt(0.5 + 1e-4)) / 2
    assert variance.item() == pytest.approx((hinge_a + hinge_b) / 2, rel=1e-5)
    assert covariance.item() == pytest.approx((0 + 2 * 1**2) / 2)
    assert vicreg(b, b)[0].item() == 0


@pytest.mark.parametrize("rows", [0, 1])
def test_vicreg_without_anything_to_vary(rows: int) -> None:
    x = torch.ones(rows, 4, requires_grad=True)
    invariance, variance, covariance = vicreg(x, x)
    assert (invariance.item(), covariance.item()) == (0, 0)
    assert variance.item() == pytest.approx(0.99)
    assert torch.isfinite(gradients(invariance + variance + covariance, x)[0]).all()


def test_a_collapsed_batch_is_pushed_apart_by_the_variance_term_alone() -> None:
    x = (torch.ones(8, 4) + 1e-3 * drawn(8, 4).float()).requires_grad_()
    invariance, variance, _ = vicreg(x, x)
    (slope,) = gradients(variance, x)
    centred = (x - x.mean(0)).detach()
    assert (slope * centred).sum() < 0  # a step against the gradient moves rows away from their mean
    assert not gradients(invariance + 0 * x.sum(), x)[0].any()


# --- figures ---------------------------------------------------------------------------------------------------------


def test_effective_rank() -> None:
    assert effective_rank(torch.eye(5)).item() == pytest.approx(5)
    assert effective_rank(torch.ones(7, 3)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(4, 3)).item() == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan], [1.0, 0.0]])).item())
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.inf], [1.0, 0.0]])).item())
    # Singular values 3 and 1: shares 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))).item() == pytest.approx(expected, rel=1e-6)
    x = drawn(20, 6)
    singular = torch.linalg.svdvals(x)
    share = singular / singular.sum()
    assert effective_rank(x).item() == pytest.approx((-(share * share.log()).sum()).exp().item(), rel=1e-9)
    assert effective_rank(x.T).item() == pytest.approx(effective_rank(x).item(), rel=1e-9)
    assert effective_rank(9 * x).item() == pytest.approx(effective_rank(x).item(), rel=1e-9)


def test_spread_alignment_uniformity() -> None:
    circle = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert spread(circle).item() == pytest.approx(math.sqrt(0.5))
    assert spread(torch.ones(4, 2)).item() == 0
    assert alignment(circle, circle).item() == 0
    assert alignment(circle, -circle).item() == pytest.approx(4)
    # Of six pairs two are opposite (squared distance 4) and four are at right angles (2).
    assert uniformity(circle).item() == pytest.approx(math.log((2 * math.exp(-8) + 4 * math.exp(-4)) / 6), rel=1e-5)
    assert uniformity(torch.ones(3, 2)).item() == pytest.approx(0, abs=1e-6)
