"""A batch encoded in parts has the loss and the gradient of the whole batch, dropout included."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModel

from sslnlp.collators.ranking import RankingCollator
from sslnlp.errors import UserError
from sslnlp.keyed import row_keyed_dropout
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives import get_objective
from sslnlp.objectives.grad_cache import encode_in_parts
from tests.contract import LENGTH, make_collator, make_stream, small_tokenizer

NAMES = ("barlow_twins", "byol", "info_nce", "moco", "vicreg")


def encoder(architecture: str, dropout: float) -> Any:
    config = ModelConfig(architecture=architecture, size="nano", dropout=dropout)
    return build_model(config, small_tokenizer(), AutoModel, max_length=LENGTH, seed=0)


def one_update(objective: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and the gradients, with dropout; back through it outside the context, as in anyone's own loop."""
    objective.train()
    with row_keyed_dropout(3, batch["position"]):
        loss = objective(batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def same_in_parts(whole: Any, batch: Any, sizes: tuple[int, ...]) -> None:
    whole.double()  # so that nothing but rounding is forgiven
    parts = [copy.deepcopy(whole) for _ in sizes]
    loss, gradients = one_update(whole, batch)
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert largest > 1e-4
    for size, part in zip(sizes, parts, strict=True):
        part.mini_batch_size = size
        found, others = one_update(part, batch)
        assert others.keys() == gradients.keys()
        torch.testing.assert_close(found, loss)
        for name, gradient in gradients.items():
            assert float((others[name] - gradient).abs().max()) < 1e-11 * largest, name


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_whole_batch(name: str) -> None:
    rows = make_stream(name).rows(range(7))
    torch.manual_seed(0)
    objective = get_objective(name)(encoder("bert", 0.1))
    same_in_parts(objective, make_collator(name)(rows), (1, 3, 7))


@pytest.mark.parametrize("architecture", ["modernbert", "roberta", "llama"])
def test_of_any_backbone(architecture: str) -> None:
    rows = make_stream("info_nce").rows(range(5))
    same_in_parts(get_objective("info_nce")(encoder(architecture, 0.1)), make_collator("info_nce")(rows), (2,))


def test_negatives_stay_with_their_row() -> None:
    texts = ["the north wind", "a warm cloak", "the sun shone", "travellers came along", "they disputed"]
    rows: Any = [
        {"query": a, "positive": b, "negatives": [a + b, b + " " + a], "position": p}
        for p, (a, b) in enumerate(zip(texts, texts[1:] + texts[:1], strict=True))
    ]
    batch = RankingCollator(tokenizer=small_tokenizer())(rows)
    same_in_parts(get_objective("ranking")(encoder("bert", 0.1)), batch, (1, 2, 4))


def test_without_a_gradient_nothing_is_run_again() -> None:
    calls = []

    def encode(encoding: Any) -> torch.Tensor:
        calls.append(len(encoding["input_ids"]))
        return encoding["input_ids"].float()

    ids = torch.arange(10).view(5, 2)
    with torch.no_grad():
        assert encode_in_parts(encode, {"input_ids": ids}, 2).equal(ids.float())
    assert calls == [2, 2, 1]


def test_what_is_no_number_of_rows() -> None:
    for name in ("info_nce", "ranking"):
        with pytest.raises(UserError, match="mini_batch_size=0 must be at least 1"):
            get_objective(name)(encoder("bert", 0.0), mini_batch_size=0)
