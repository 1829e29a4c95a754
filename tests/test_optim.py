"""Schedules and parameter groups, against arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslnlp.optim import SCHEDULES, learning_rate_factor, parameter_groups


def curve(schedule: str, steps: int = 10, warmup: int = 2, decay: float = 0.3) -> list[float]:
    return [learning_rate_factor(step, steps, schedule=schedule, warmup=warmup, decay=decay) for step in range(steps)]


def test_warm_up_stable_decay_by_hand() -> None:
    # Two warm-up steps, stable, then the last three fall in quarters: 3/4, 2/4, 1/4.
    assert curve("wsd") == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_linear_and_constant_by_hand() -> None:
    assert curve("linear") == pytest.approx([0.5, 1.0, *(n / 9 for n in range(8, 0, -1))])
    assert curve("constant") == pytest.approx([0.5] + [1.0] * 9)


def test_cosine_is_half_way_in_the_middle() -> None:
    values = curve("cosine", steps=11, warmup=2)
    assert values[6] == pytest.approx(0.5, abs=0.06)
    assert values[2:] == sorted(values[2:], reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_the_rate_is_always_positive_and_never_above_its_peak(schedule: str, steps: int, warmup: int) -> None:
    assert all(0 < value <= 1 for value in curve(schedule, steps, warmup))


def test_only_matrices_decay_and_frozen_parameters_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    decayed, kept = parameter_groups(module, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert decayed["weight_decay"] == 0.1
    assert [tuple(p.shape) for p in kept["params"]] == [(4,), (4,), (4,)]
    assert kept["weight_decay"] == 0.0
    assert isinstance(decayed["params"][0], torch.Tensor)
