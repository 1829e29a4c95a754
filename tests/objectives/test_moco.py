"""The queue of MoCo, and the slow copy that it has in common with BYOL."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sslnlp.objectives.embedding import Documents
from sslnlp.objectives.functional import info_nce
from sslnlp.train import TrainConfig, Trainer
from tests.contract import difference, make_collator, make_stream
from tests.objectives.text_views import batch_of, make, unit


def test_the_queue_adds_negatives_after_the_update() -> None:
    objective = make("moco", queue=64, temperature=0.1, momentum=0.5).train()
    first, second = batch_of(4), batch_of(4, start=4)
    documents = int(first["present"].sum())
    target = torch.arange(documents)
    query, key = unit(objective, first, 0), unit(objective, first, 1)
    assert torch.allclose(objective(first).loss, info_nce(query, key, target, temperature=0.1)[0], atol=1e-5)
    assert int(objective.queue.pushed) == 0  # within an update nothing moves
    objective.after_step(0.5)
    assert int(objective.queue.pushed) == documents
    raw = objective.vectors(first["view_1"], Documents.of(first))
    kept = objective.queue.vectors[objective.queue.filled]
    assert torch.allclose(kept, raw, atol=1e-5)

    query, key = unit(objective, second, 0), unit(objective, second, 1)
    candidates = torch.cat([key, F.normalize(kept, dim=-1)])
    target = torch.arange(int(second["present"].sum()))
    assert torch.allclose(objective(second).loss, info_nce(query, candidates, target, temperature=0.1)[0], atol=1e-5)
    # A document in the queue is no negative of itself.
    objective._fresh.clear()
    again = objective(first).loss.item()
    query, key = unit(objective, first, 0), unit(objective, first, 1)
    own = torch.eye(documents, dtype=torch.bool)
    expected, _ = info_nce(
        query, torch.cat([key, F.normalize(kept, dim=-1)]), torch.arange(documents), temperature=0.1,
        excluded_QD=torch.cat([torch.zeros_like(own), own], dim=1),
    )  # fmt: skip
    assert again == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("queue", [3, 20, 0])
def test_the_queue_is_the_same_however_an_update_is_split(queue: int, tmp_path: Path) -> None:
    """Smaller than a batch, wrapped around, and none: 1 × 8 and 4 × 2 rows leave the same keys at the same places."""
    held = []
    for size, accumulate in ((8, 1), (2, 4)):
        # With a learning rate of nearly 0 only what is pushed can differ: the loss of a split batch is another one.
        config = TrainConfig(steps=4, batch_size=size, accumulate=accumulate, lr=1e-12, seed=3, weight_decay=0.0)
        objective = make("moco", queue=queue)
        stream = make_stream("moco", 3)
        Trainer(objective, make_collator("moco", 3), stream, config, out=tmp_path / f"{size}").fit()
        held.append(objective.queue.state_dict())
    assert difference(held[0], held[1]) < 1e-5
    assert torch.equal(held[0]["tags"], held[1]["tags"])
    assert int(held[0]["pushed"]) > 20


def test_what_is_pushed_is_in_the_order_of_positions() -> None:
    """As with several processes, whose rows of one micro-batch do not follow those of the one before."""
    straight, mixed = make("moco", queue=64).train(), make("moco", queue=64).train()
    for objective, batches in ((straight, [(2, 0), (2, 2)]), (mixed, [(2, 2), (2, 0)])):
        for rows_and_start in batches:
            objective(batch_of(*rows_and_start))
        objective.after_step(1.0)
    assert difference(straight.queue.state_dict(), mixed.queue.state_dict()) < 1e-5


def test_what_a_failed_update_has_staged_is_forgotten() -> None:
    objective = make("moco", queue=64).train()
    state = copy.deepcopy(objective.state_dict())
    objective(batch_of())
    assert objective._fresh
    objective.load_state_dict(state)
    objective.after_step(1.0)
    assert int(objective.queue.pushed) == 0
    objective(batch_of())
    objective.after_step(1.0)
    objective.eval()
    with_queue = objective(batch_of(4, start=6)).loss
    assert not objective._fresh  # held-out text is never a negative
    objective.queue.pushed.zero_()
    assert torch.equal(objective(batch_of(4, start=6)).loss, with_queue)  # nor are others the negatives of it


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_the_slow_copy_gets_no_gradient_and_follows(name: str) -> None:
    objective = make(name, momentum=0.5, momentum_end=0.5).train()
    before = copy.deepcopy(objective.teacher.state_dict())
    objective(batch_of()).loss.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    with torch.no_grad():
        for p in objective.model.parameters():
            p += 1
    assert difference(before, objective.teacher.state_dict()) == 0
    objective.after_step(0.5)
    moved = {k: v for k, v in objective.teacher.state_dict().items() if v.is_floating_point()}
    for key, value in moved.items():
        if key.removeprefix("module.") in dict(objective.model.named_parameters()):
            assert torch.allclose(value, before[key] + 0.5, atol=1e-5)
