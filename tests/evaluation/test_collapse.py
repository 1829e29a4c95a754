"""The alarm: a run that collapses is told of once, in time, with a reason; a healthy one is not accused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sslnlp.evaluation.collapse import FALLEN, PATIENCE, CollapseWatch
from sslnlp.metrics import read_metrics
from sslnlp.train import TrainConfig, Trainer
from tests.contract import make_collator, make_objective, make_stream

STEPS = 100
HEALTHY = ("barlow_twins", "byol", "info_nce", "moco", "vicreg")


def said(name: str, values: list[float], losses: list[float] | None = None) -> list[tuple[int, str]]:
    watch = CollapseWatch()
    lines = [
        (step, watch(step, {name: value, "loss": loss, "accuracy": 0.5}))
        for step, (value, loss) in enumerate(zip(values, losses or [1.0] * len(values), strict=True))
    ]
    return [(step, line) for step, line in lines if line]


def test_a_figure_that_stays_down_is_told_of_once() -> None:
    low = FALLEN * 0.9
    found = said("spread", [0.5, 1.0, 1.1, 1.2, low, low, low, low, low, 0.9, low, low, low])
    assert [step for step, _ in found] == [4 + PATIENCE - 1]
    assert "spread is down to 0.18 from 1;" in found[0][1]  # the least of three that it held
    assert "\n" not in found[0][1]


def test_what_is_no_collapse() -> None:
    assert not said("spread", [0.01, 0.01, 0.02, 0.05, 0.3])  # a fresh model's vectors are all alike
    assert not said("spread", [1.0, 0.1, 0.1, 0.3, 0.1, 0.1, 0.3])  # a swing
    assert not said("spread", [0.01, 0.25, 0.18, 0.04, 0.04, 0.04, 0.1])  # nor what was high for a moment
    assert not said("effective_rank", [9.0, 4.0, 3.5, 3.5, 3.5, 3.5])
    assert not said("accuracy_of_something", [1.0, 0.0, 0.0, 0.0, 0.0])
    assert not said("spread", [0.0] * 9)  # and was never anything else: nothing has fallen


def test_a_rank_counts_from_one_and_parts_are_watched() -> None:
    (found,) = said("info_nce/effective_rank", [11.0, 2.9, 2.9, 2.9])
    assert found[0] == 3
    assert "info_nce/effective_rank is down to 2.9 from 11" in found[1]
    assert "few directions" in found[1]


def test_the_reason_goes_by_the_loss() -> None:
    figures = [1.0, 0.1, 0.1, 0.1]
    assert "agreement alone" in said("spread", figures, [3.0, 2.0, 1.0, 0.5])[0][1]
    assert "diverging" in said("spread", figures, [3.0, 4.0, 5.0, 6.0])[0][1]


def train(
    name: str, seed: int, out: Path, broken: str | None = None, rows: int = 16, steps: int = STEPS
) -> list[dict[str, Any]]:
    """Metrics of a run of this many steps, logged as often as by default."""
    objective: Any = make_objective(name, "bert", seed=seed)
    if broken == "predictor":
        objective.predictor = nn.Identity()
        for slow in (objective.teacher, objective.slow_projector):
            slow.momentum = slow.momentum_end = 0.0
    if broken == "variance":
        objective.weights["variance"] = 0.0
    config = TrainConfig(steps=steps, batch_size=rows, lr=1e-3, seed=seed, save_every=steps)
    Trainer(objective, make_collator(name, seed), make_stream(name, seed), config, out=out).fit()
    return read_metrics(out / "metrics.jsonl")


def alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "collapsing" in record.getMessage()]


@pytest.mark.parametrize(("name", "broken"), [("byol", "predictor"), ("vicreg", "variance")])
def test_a_collapsing_run_is_caught_within_a_hundred_steps(
    name: str, broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(name, 0, tmp_path, broken, rows=6, steps=60)
    assert len(alarms(caplog)) == 1


def test_a_healthy_run_is_not_accused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        lines = train("byol", 0, tmp_path, rows=6, steps=60)
    assert {"train/effective_rank", "train/spread", "train/compared_spread"} <= lines[-1].keys()
    assert not alarms(caplog)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_no_healthy_run_of_ten_is_accused(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for seed in range(10):
            train(name, seed, tmp_path / str(seed))
    assert not alarms(caplog)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "broken"), [("byol", "predictor"), ("vicreg", "variance")])
def test_every_collapsing_run_of_ten_is_caught(
    name: str, broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for seed in range(10):
            train(name, seed, tmp_path / str(seed), broken)
    assert len(alarms(caplog)) == 10
