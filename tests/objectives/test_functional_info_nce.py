"""Closed forms of InfoNCE, and that it splits over processes."""

import math

import pytest
import torch

from sslnlp.objectives.functional import info_nce, relevant_pairs


def test_equal_vectors_give_the_log_of_the_candidates() -> None:
    vectors = torch.ones(3, 4) / 2
    loss, similarity = info_nce(vectors, torch.ones(7, 4) / 2, torch.arange(3), temperature=0.05)
    assert loss.item() == pytest.approx(math.log(7), rel=1e-5)
    assert torch.equal(similarity, torch.ones(3, 7))


def test_orthogonal_pairs() -> None:
    # Each query equals its document (cosine 1) and is orthogonal to the two others: -log(e^2 / (e^2 + 2)) at 1/2.
    loss, _ = info_nce(torch.eye(3), torch.eye(3), torch.arange(3), temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-5)


def test_excluded_candidates_leave_the_sum_but_the_own_document_cannot() -> None:
    vectors = torch.ones(2, 4)
    excluded = torch.tensor([[True, True, False], [True, True, True]])
    loss, similarity = info_nce(vectors, torch.ones(3, 4), torch.tensor([0, 1]), temperature=1.0, excluded_QD=excluded)
    # Query 0 chooses between documents 0 (its own) and 2: log 2. Query 1 has only its own left: 0.
    assert loss.item() == pytest.approx(math.log(2) / 2, rel=1e-5)
    assert torch.isinf(similarity).tolist() == [[False, True, False], [True, False, True]]


def test_excluded_candidates_get_no_gradient() -> None:
    documents = torch.randn(3, 4, requires_grad=True)
    excluded = torch.tensor([[False, True, False]])
    info_nce(torch.randn(1, 4), documents, torch.tensor([0]), temperature=1.0, excluded_QD=excluded)[0].backward()
    assert documents.grad is not None
    assert torch.equal(documents.grad[1], torch.zeros(4))
    assert (documents.grad[2] != 0).any()


def test_mean_of_the_parts_is_the_whole() -> None:
    # What two processes do: each its own queries against all documents, losses (and gradients) averaged.
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(6, 4, generator=generator, requires_grad=True)
    documents = torch.randn(9, 4, generator=generator, requires_grad=True)
    target = torch.arange(6)
    whole, _ = info_nce(queries, documents, target, temperature=0.3)
    parts = [info_nce(queries[s], documents, target[s], temperature=0.3)[0] for s in (slice(0, 3), slice(3, 6))]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole)
    for a, b in zip(
        torch.autograd.grad(whole, [queries, documents], retain_graph=True),
        torch.autograd.grad(mean, [queries, documents]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_relevant_pairs_follow_equal_texts_on_both_sides() -> None:
    # Pairs (1, 10), (2, 20), (1, 30): query text 1 has two relevant documents, on each of its rows.
    asked, texts = torch.tensor([1, 2, 1]), torch.tensor([10, 20, 30])
    documents = torch.tensor([10, 20, 30, 20, 99])  # two explicit negatives; the first is the text of document 20
    assert relevant_pairs(asked, documents, asked, texts).tolist() == [
        [True, False, True, False, False],
        [False, True, False, True, False],
        [True, False, True, False, False],
    ]


def test_relevant_pairs_of_some_queries_are_those_rows_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    asked, texts = (torch.randint(0, 30, (90,), generator=generator) for _ in range(2))
    documents = torch.cat([texts, torch.randint(0, 60, (40,), generator=generator)])
    whole = relevant_pairs(asked, documents, asked, texts)
    joined = {(int(a), int(b)) for a, b in zip(asked, texts, strict=True)}
    assert whole.tolist() == [[(int(a), int(b)) in joined for b in documents] for a in asked]
    for part in (slice(0, 1), slice(5, 12), slice(0, 0)):
        assert torch.equal(relevant_pairs(asked[part], documents, asked, texts), whole[part])
    unknown = torch.tensor([99, 3])
    assert not relevant_pairs(unknown, documents, asked, texts)[0].any()


def test_cosines_keep_their_digits_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    query, document = (torch.nn.functional.normalize(torch.randn(6, 16, generator=generator)) for _ in range(2))
    exact, similarity = info_nce(query, document, torch.arange(6), temperature=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = info_nce(query, document, torch.arange(6), temperature=0.05)
    assert torch.equal(found, similarity)
    assert torch.equal(loss, exact)
