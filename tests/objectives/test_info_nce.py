"""What InfoNCE compares with what, and its temperature."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sslnlp.collators.views import PairViewsCollator
from sslnlp.objectives.embedding import Documents
from sslnlp.objectives.functional import info_nce
from sslnlp.objectives.info_nce import COLDEST
from tests.contract import make_collator
from tests.objectives.text_views import batch_of, collator, framed, make, unit


def test_each_view_looks_for_the_others_among_all_documents() -> None:
    batch = batch_of(views=["crop", "delete", "text"])
    documents = int(batch["present"].sum())
    target = torch.arange(documents)
    for symmetric, pairs in ((True, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]), (False, [(0, 1), (0, 2)])):
        objective = make("info_nce", symmetric=symmetric, temperature=0.2).eval()
        output = objective(batch)
        sides = [unit(objective, batch, view) for view in range(3)]
        expected = torch.stack([info_nce(sides[i], sides[j], target, temperature=0.2)[0] for i, j in pairs]).mean()
        assert torch.allclose(output.loss, expected, atol=1e-5)
        assert int(objective.num_targets(batch)) == documents
        found = (sides[0] @ sides[1].T).argmax(1) == target
        assert output.metrics["accuracy"].item() == pytest.approx(found.float().mean().item())


def test_duplicates_are_not_negatives() -> None:
    twins = {"views": ["text", "text"]}
    once = [framed("the cat sees a dog by the lake.", 0), framed("one mouse forgets the fox on a hill.", 1)]
    objective = make("info_nce").eval()
    alone, doubled = collator(**twins)(once), collator(**twins)([*once, {**once[0], "position": 2}])
    # A third row that repeats the first is no candidate for it, and finds the one negative that the first finds.
    a, b = unit(objective, alone, 0)
    one = math.log(1 + math.exp((a @ b).item() / 0.05 - 1 / 0.05))
    assert objective(alone).loss.item() == pytest.approx(one, rel=1e-3)
    # The other's sum has both copies.
    two = math.log(1 + 2 * math.exp((a @ b).item() / 0.05 - 1 / 0.05))
    assert objective(doubled).loss.item() == pytest.approx((2 * one + two) / 3, rel=1e-3)


def test_hard_negatives_are_candidates_of_the_first_view_alone() -> None:
    tokenizer = make_collator("ranking").tokenizer
    given = [
        {"query": f"day {i}", "positive": f"the cat sees mouse {i}", "negatives": [f"an owl {i}", f"the fox {i % 2}"]}
        for i in range(4)
    ]
    pairs = PairViewsCollator(tokenizer=tokenizer)([{**row, "position": i} for i, row in enumerate(given)])
    objective = make("info_nce", temperature=0.1).eval()
    query, positive = unit(objective, pairs, 0), unit(objective, pairs, 1)
    negative = pairs["negative"]
    hard = F.normalize(objective.vectors(negative, Documents(1, torch.arange(8))), dim=-1)
    target = torch.arange(4)
    there, _ = info_nce(query, torch.cat([positive, hard]), target, temperature=0.1)
    back, _ = info_nce(positive, query, target, temperature=0.1)
    assert torch.allclose(objective(pairs).loss, (there + back) / 2, atol=1e-5)
    objective(pairs).loss.backward()
    assert all(p.grad is not None for p in objective.parameters())


def test_a_learned_temperature_moves_and_stays_above_the_coldest() -> None:
    objective = make("info_nce", temperature=0.5, learn_temperature=True)
    batch = batch_of()
    objective(batch).loss.backward()
    assert objective.log_scale.grad.abs().item() > 0
    with torch.no_grad():
        objective.log_scale.fill_(50.0)
    objective.after_step(1.0)
    assert objective.eval()(batch).metrics["temperature"].item() == pytest.approx(COLDEST)
    fixed = make("info_nce", temperature=0.005)
    fixed.after_step(1.0)
    assert fixed.eval()(batch).metrics["temperature"].item() == pytest.approx(0.005)
    assert "log_scale" not in dict(fixed.named_parameters())
