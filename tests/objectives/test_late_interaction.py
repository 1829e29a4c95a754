"""Late interaction: MaxSim by hand, what is a negative, and padding that changes nothing."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslnlp.errors import UserError
from sslnlp.objectives.late_interaction import LateInteraction, max_sim
from tests.contract import make_objective, one_batch

MODEL: Any = make_objective("late_interaction", "bert")


def test_max_sim_by_hand() -> None:
    one, other, third = (torch.eye(3)[n] for n in range(3))
    query = torch.stack([torch.stack([one, other, third]), torch.stack([one, one, one])])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])  # the third token of the first query is padding
    documents = torch.stack([torch.stack([one, third]), torch.stack([other * 2, one])])
    seen = torch.tensor([[1, 1], [1, 0]])  # and the second of the second document
    assert max_sim(query, mask, documents, seen).tolist() == [[1, 2], [1, 0]]
    assert max_sim(query, mask, documents, torch.ones(2, 2)).tolist() == [[1, 3], [1, 1]]


def test_max_sim_keeps_its_digits_under_autocast() -> None:
    torch.manual_seed(0)
    query, documents = F.normalize(torch.randn(2, 3, 64), dim=-1), F.normalize(torch.randn(4, 5, 64), dim=-1)
    masks = torch.ones(2, 3), torch.ones(4, 5)
    plain = max_sim(query, masks[0], documents, masks[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(max_sim(query, masks[0], documents, masks[1]), plain)


@torch.no_grad()
def test_the_loss_is_a_softmax_over_mean_best_cosines() -> None:
    model, batch = MODEL.eval(), one_batch("late_interaction", rows=4)
    output = model(batch)
    vectors = {
        name: [
            F.normalize(model.model(ids[mask.bool()][None]).last_hidden_state[0], dim=-1)
            for ids, mask in zip(batch[name]["input_ids"], batch[name]["attention_mask"], strict=True)
        ]
        for name in ("query", "positive", "negative")
    }
    scores = torch.tensor(
        [[(q @ d.T).max(1).values.mean() for d in vectors["positive"] + vectors["negative"]] for q in vectors["query"]]
    )
    expected = F.cross_entropy(scores / 0.05, torch.arange(4))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert output.metrics["positive_similarity"].item() == pytest.approx(scores.diagonal().mean().item(), rel=1e-4)
    assert output.metrics["accuracy"].item() == (scores.argmax(1) == torch.arange(4)).float().mean()


def test_known_relevant_texts_are_no_negatives() -> None:
    batch = one_batch("late_interaction", rows=3)
    del batch["negative"], batch["negative_hash"]
    # Of three queries the first two ask for the same text, so each has one negative.
    batch["query"] = {name: value[[0, 0, 2]] for name, value in batch["query"].items()}
    batch["positive"] = {name: value[[1, 1, 1]] for name, value in batch["positive"].items()}
    batch["query_hash"], batch["positive_hash"] = torch.tensor([1, 1, 2]), torch.tensor([5, 6, 7])
    loss = MODEL.eval()(batch).loss.item()
    assert loss == pytest.approx((2 * math.log(2) + math.log(3)) / 3, rel=1e-5)


def test_padding_changes_nothing() -> None:
    batch = one_batch("late_interaction", rows=3)
    wider = {
        name: {key: F.pad(value, (0, 5)) for key, value in batch[name].items()} if isinstance(batch[name], dict)
        else batch[name] for name in batch
    }  # fmt: skip
    assert wider["query"]["input_ids"].shape[1] == batch["query"]["input_ids"].shape[1] + 5
    model = make_objective("late_interaction", "modernbert").eval()  # reads rows of any width
    assert model(wider).loss.item() == pytest.approx(model(batch).loss.item(), rel=1e-5)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.temperature=0 must be above 0"):
        LateInteraction(MODEL.model, temperature=0)
