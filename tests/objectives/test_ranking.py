"""The bi-encoder objective: what counts as a negative, and what the vectors are."""

import math
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from sslnlp.errors import UserError
from sslnlp.objectives.ranking import Ranking


def objective(**options: Any) -> Ranking:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Ranking(BertModel(config, add_pooling_layer=False), **options)


def encoding(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def batch(rows: int = 4, negatives: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def texts(n: int) -> list[list[int]]:
        return torch.randint(1, 40, (n, 5), generator=generator).tolist()

    made: dict[str, Any] = {
        "query": encoding(texts(rows)),
        "positive": encoding(texts(rows)),
        "query_hash": torch.arange(rows),
        "positive_hash": 100 + torch.arange(rows),
        "position": torch.arange(rows),
    }
    if negatives:
        made["negative"] = encoding(texts(rows * negatives))
        made["negative_hash"] = 200 + torch.arange(rows * negatives)
    return made


def logits(objective: Ranking, given: dict[str, Any], side: str = "positive") -> torch.Tensor:
    return objective.embed(given["query"]) @ objective.embed(given[side]).T / objective.temperature


def test_vectors_have_length_one_and_ignore_padding() -> None:
    for pooling in ("mean", "cls"):
        model = objective(pooling=pooling).eval()
        short, padded = model.embed(encoding([[5, 6, 7]])), model.embed(encoding([[5, 6, 7, 0, 0]]))
        assert short.norm().item() == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(short, padded, atol=1e-6, rtol=1e-5)
        assert model.pooling == pooling
    assert Ranking.pooling == "mean"


def test_loss_is_cross_entropy_over_the_batch() -> None:
    model, given = objective(), batch(4)
    expected = torch.nn.functional.cross_entropy(logits(model, given), torch.arange(4))
    torch.testing.assert_close(model(given).loss, expected)
    assert model.num_targets(given) == 4


def test_symmetric_averages_both_directions() -> None:
    model, given = objective(symmetric=True), batch(4)
    table, own = logits(model, given), torch.arange(4)
    cross_entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(model(given).loss, (cross_entropy(table, own) + cross_entropy(table.T, own)) / 2)


def test_explicit_negatives_join_every_querys_candidates() -> None:
    model, given = objective(), batch(3, negatives=2)
    table = torch.cat([logits(model, given), logits(model, given, "negative")], dim=1)
    assert table.shape == (3, 9)
    torch.testing.assert_close(model(given).loss, torch.nn.functional.cross_entropy(table, torch.arange(3)))


def test_a_collapsed_model_scores_log_n_and_finds_nothing() -> None:
    model, given = objective(), batch(4, negatives=1)
    for name in ("query", "positive", "negative"):
        given[name] = encoding([[5, 6, 7]] * 4)
    output = model(given)
    assert output.loss.item() == pytest.approx(math.log(8), rel=1e-4)
    assert output.metrics["accuracy"] == 0
    assert output.metrics["positive_similarity"].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_same_pair_twice_is_not_its_own_negative(symmetric: bool) -> None:
    # Rows 0 and 1 are the same pair: each has itself, and row 2. With the copy masked, two candidates stay.
    model, given = objective(symmetric=symmetric), batch(3)
    for side in ("query", "positive"):
        given[side] = encoding([[5, 6, 7]] * 3)
    given["query_hash"], given["positive_hash"] = torch.tensor([1, 1, 2]), torch.tensor([10, 10, 20])
    # Rows 0 and 1 choose between 2 candidates; row 2 (another pair) among 3.
    assert model(given).loss.item() == pytest.approx((2 * math.log(2) + math.log(3)) / 3, rel=1e-4)


def test_a_negative_that_is_the_positive_is_left_out() -> None:
    model, given = objective(), batch(2, negatives=1)
    given["negative_hash"] = given["positive_hash"].clone()  # each row's negative is its positive's text
    table = torch.cat([logits(model, given), logits(model, given, "negative")], dim=1)
    table[0, 2] = table[1, 3] = -math.inf
    torch.testing.assert_close(model(given).loss, torch.nn.functional.cross_entropy(table, torch.arange(2)))


def test_every_parameter_learns_and_one_batch_is_learnt() -> None:
    model, given = objective(), batch(6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(given).loss.backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
    output = model(given)
    assert output.loss < 0.1
    assert output.metrics["accuracy"] == 1


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0}, {"pooling": "sum"}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        objective(**options)
