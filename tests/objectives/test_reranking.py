"""The cross-encoder: closed forms of its three losses, and exactness where negatives are left out."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from sslnlp.collators.reranking import RerankingCollator
from sslnlp.data.stream import Stream
from sslnlp.errors import UserError
from sslnlp.evaluation.reranking import reranking_measures
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives.reranking import LOSSES, Reranking
from sslnlp.train import TrainConfig, Trainer
from tests.contract import corpus, difference, one_batch, small_tokenizer

RELEVANCE = torch.tensor([[1, 0, 0, -100], [1, 0, 0, 0]])
SCORES = torch.tensor([[2.0, 1.0, -1.0, 9.0], [0.5, 0.5, 3.0, -2.0]])


def objective(**options: Any) -> Reranking:
    model = build_model(
        ModelConfig(architecture="bert", size="nano", dropout=0.1), small_tokenizer(), Reranking.wraps,
        max_length=64, seed=0, **Reranking.config_fields(()),
    )  # fmt: skip
    return Reranking(model, **options)


@pytest.mark.parametrize(
    ("loss", "expected", "targets"),
    # Equal scores: a coin for each of 7 candidates, for each of 5 irrelevant ones; one of 3 and one of 4.
    [("pointwise", 7 * math.log(2), 7), ("pairwise", 5 * math.log(2), 5), ("listwise", math.log(3) + math.log(4), 2)],
)
def test_losses_of_equal_scores(loss: str, expected: float, targets: int) -> None:
    total, count = LOSSES[loss]
    assert total(torch.full((2, 4), 0.0), RELEVANCE).item() == pytest.approx(expected)
    assert count(RELEVANCE).item() == targets


def test_losses_by_hand() -> None:
    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    point = sum(map(softplus, (-2, 1, -1, -0.5, 0.5, 3, -2)))
    pair = sum(map(softplus, (1 - 2, -1 - 2, 0.5 - 0.5, 3 - 0.5, -2 - 0.5)))
    total = [sum(math.exp(s) for s in row) for row in ((2, 1, -1), (0.5, 0.5, 3, -2))]
    expected = {"pointwise": point, "pairwise": pair, "listwise": sum(map(math.log, total)) - 2.5}
    for loss, value in expected.items():
        assert LOSSES[loss][0](SCORES, RELEVANCE).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_text_that_is_left_out_has_no_gradient_and_a_query_without_others_no_loss(loss: str) -> None:
    scores = SCORES.clone().requires_grad_()
    LOSSES[loss][0](scores, RELEVANCE).backward()
    assert scores.grad is not None
    assert scores.grad[0, 3] == 0
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[:, 0] < 0).all()
    nothing = torch.tensor([[1, -100]])
    if loss != "pointwise":
        assert LOSSES[loss][0](torch.tensor([[1.0, 2.0]]), nothing).item() == 0


def test_accuracy_is_of_queries_whatever_the_targets_are() -> None:
    for loss in LOSSES:
        output = objective(loss=loss).outcome(SCORES, {"relevance": RELEVANCE})
        assert output.metrics["accuracy"].tolist() == [1, 2]  # the text that is left out beats nobody; a tie is lost


def test_scores_are_those_of_the_pairs_in_their_order() -> None:
    batch, model = one_batch("reranking"), objective().eval()
    scores = model.logits(batch)
    assert scores.shape == batch["relevance"].shape
    third = {name: value[4:6] for name, value in batch["pairs"].items()}
    torch.testing.assert_close(model.model(**third).logits[:, 0], scores[2])


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_window_is_a_batch_also_where_negatives_are_left_out(loss: str, tmp_path: Path) -> None:
    texts = corpus()[:32]
    rows = [
        {"query": text[:12], "positive": text, "negatives": [texts[n - 3], text if n % 3 == 0 else texts[n - 5]]}
        for n, text in enumerate(texts)
    ]
    states = []
    for size, accumulate in ((16, 1), (2, 8)):
        collator = RerankingCollator(tokenizer=small_tokenizer(), max_length=48, seed=3)
        options = TrainConfig(steps=2, batch_size=size, accumulate=accumulate, lr=1e-3, eps=1e-4, seed=3)
        trainer = Trainer(objective(loss=loss), collator, Stream(rows, 3), options, out=tmp_path / str(size))
        states.append(trainer.fit().state_dict())
    assert difference(states[0], objective().state_dict()) > 1e-4
    assert difference(*states) < 2e-5


def test_scores_that_are_no_numbers_rank_last() -> None:
    scores = torch.full_like(SCORES, math.nan)
    assert objective().predicted(scores, {"relevance": RELEVANCE})["rank"].tolist() == [3, 4]


def test_places_and_their_chance_by_hand() -> None:
    predicted = objective().predicted(SCORES, {"relevance": RELEVANCE})
    assert {name: value.tolist() for name, value in predicted.items()} == {"rank": [1, 3], "candidates": [3, 4]}
    figures = reranking_measures(predicted)
    assert figures["mrr@10"] == pytest.approx((1 + 1 / 3) / 2)
    assert figures["ndcg@10"] == pytest.approx((1 + 1 / 2) / 2)
    assert figures["chance_mrr@10"] == pytest.approx(((1 + 1 / 2 + 1 / 3) / 3 + (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4) / 2)
    last = reranking_measures({"rank": torch.tensor([10]), "candidates": torch.tensor([20])})
    assert last["mrr@10"] == pytest.approx(0.1)
    far = reranking_measures({"rank": torch.tensor([11, 20]), "candidates": torch.tensor([20, 20])})
    assert far["mrr@10"] == far["ndcg@10"] == 0
    assert far["chance_mrr@10"] == pytest.approx(sum(1 / n for n in range(1, 11)) / 20)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown objective\.loss='listwize'\. Did you mean 'listwise'"):
        objective(loss="listwize")


def test_a_head_with_other_outputs_is_refused() -> None:
    config = AutoConfig.for_model("bert", num_labels=3, architectures=["BertForSequenceClassification"])
    assert Reranking.refuses(config) == "its head has 3 outputs, and a reranker's has one"
    assert Reranking.refuses(AutoConfig.for_model("bert", num_labels=3)) is None  # no head yet
    config.num_labels = 1
    assert Reranking.refuses(config) is None
