"""The held-out pass: weighting by targets, bits per byte, fixed draws, and nothing left changed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from sslnlp.collators.base import Collator
from sslnlp.errors import UserError
from sslnlp.evaluation import evaluate_held_out
from sslnlp.objectives.base import Objective
from sslnlp.rng import uniform
from sslnlp.types import Batch, Row, StepOutput


@dataclass(kw_only=True)
class Draws(Collator):
    """One random number a row, and as many targets as the row says."""

    name: ClassVar[str] = "draws"
    makes: ClassVar[frozenset[str]] = frozenset({"value", "targets"})

    def __call__(self, rows: Sequence[Row]) -> Batch:
        positions = [row["position"] for row in rows]
        return {
            "value": torch.tensor(uniform(self.seed, "draws", positions, 1)[:, 0]),
            "targets": torch.tensor([row["targets"] for row in rows]),
        }


class Mean(Objective):
    """Its loss is the target-weighted mean of the values."""

    name: ClassVar[str] = "mean"
    needs: ClassVar[frozenset[str]] = frozenset({"value", "targets"})
    likelihood: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(SimpleNamespace())  # type: ignore[arg-type]
        self.frozen = nn.Dropout().eval()

    def forward(self, batch: Batch) -> StepOutput:
        assert not self.training
        assert not torch.is_grad_enabled()
        targets = batch["targets"]
        loss = (batch["value"] * targets).sum() / targets.sum()
        return StepOutput(loss, {"twice": 2 * loss})

    def num_targets(self, batch: Batch) -> Tensor:
        total: Tensor = batch["targets"].sum()
        return total

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        rows = len(batch["value"])
        return {"logits": torch.eye(3)[torch.arange(rows) % 3], "labels": torch.arange(rows) % 3}


class Rows:
    def __init__(self, targets: list[int]) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, positions: Sequence[int]) -> list[Row]:
        return [{"position": p, "targets": self.targets[p]} for p in positions]


TARGETS = [3, 0, 5, 1, 2, 7, 0]


def collator(seed: int = 0) -> Draws:
    return Draws(tokenizer=None, seed=seed)  # type: ignore[arg-type]


def evaluated(objective: Objective | None = None, **options: Any) -> dict[str, float]:
    options = {"batch_size": 2, "num_bytes": 40, **options}
    return evaluate_held_out(objective or Mean(), collator(), Rows(TARGETS), **options)


def test_weighted_by_targets_whatever_the_batch_size() -> None:
    values = uniform(0, "draws", range(7), 1)[:, 0]
    expected = sum(v * t for v, t in zip(values, TARGETS, strict=True)) / 18
    for batch_size in (1, 2, 3, 7, 100):
        figures = evaluated(batch_size=batch_size)
        assert figures["loss"] == pytest.approx(expected)
        assert figures["twice"] == pytest.approx(2 * expected)
        # nats of all targets, in bits, over the bytes of the text
        assert figures["bits_per_byte"] == pytest.approx(expected * 18 / math.log(2) / 40)


def test_bits_per_byte_only_of_exact_likelihoods_with_known_bytes() -> None:
    assert "bits_per_byte" not in evaluated(num_bytes=None)
    bounded = Mean()
    bounded.likelihood = False  # type: ignore[misc]
    assert "bits_per_byte" not in evaluated(bounded)


def test_draws_are_the_same_for_every_run() -> None:
    first = evaluate_held_out(Mean(), collator(seed=1), Rows(TARGETS), batch_size=2)
    second = evaluate_held_out(Mean(), collator(seed=2), Rows(TARGETS), batch_size=2)
    assert first == second
    assert first != evaluate_held_out(Mean(), collator(seed=1), Rows(TARGETS), batch_size=2, seed=5)


def test_modes_and_random_state_are_left_alone() -> None:
    objective = Mean().train()
    objective.frozen.eval()
    state = torch.get_rng_state()
    evaluated(objective)
    assert objective.training
    assert not objective.frozen.training
    assert torch.equal(torch.get_rng_state(), state)


def test_measures_see_every_row() -> None:
    objective = Mean()
    objective.measures = ("classification",)  # type: ignore[misc]
    figures = evaluated(objective, batch_size=3)
    assert figures["accuracy"] == 1
    assert figures["macro_f1"] == 1


def test_nothing_to_score() -> None:
    with pytest.raises(UserError, match="no targets"):
        evaluate_held_out(Mean(), collator(), Rows([0, 0]), batch_size=2)
