"""Objectives as modules in somebody else's loop: weights of other types than float32."""

import pytest
import torch

from sslnlp.nn import row_keyed_dropout
from sslnlp.objectives import OBJECTIVES, Objective
from tests.contract import VARIANTS, make_objective, one_batch

NAMES = sorted({*OBJECTIVES, *VARIANTS})


def loss_of(objective: Objective, name: str) -> float:
    """Of one batch; its gradients stay."""
    batch = one_batch(name)
    with row_keyed_dropout(0, torch.arange(6)):
        loss = objective.train()(batch).loss
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())
    return float(loss.detach())


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 0.1), (torch.float64, 1e-3)], ids=["bf16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_may_be_of_another_type(name: str, dtype: torch.dtype, rounding: float) -> None:
    expected = loss_of(make_objective(name), name)
    assert loss_of(make_objective(name).to(dtype), name) == pytest.approx(expected, rel=rounding, abs=rounding)
