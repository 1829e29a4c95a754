"""Objectives as modules in somebody else's loop: other types of weights, and copies by pickling."""

import io

import pytest
import torch

from sslnlp.nn import row_keyed_dropout
from sslnlp.objectives import OBJECTIVES, Objective, get_objective
from tests.contract import OPTIONS, VARIANTS, make_objective, objective_class, one_batch

NAMES = sorted({*OBJECTIVES, *VARIANTS})
# The others are of a class that their options made (`Objective.bound`), which stands in no module.
IN_A_MODULE = [name for name in NAMES if objective_class(name) is get_objective(VARIANTS.get(name, (name, ""))[0])]


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_added_is_of_the_type_of_the_model(name: str, dtype: torch.dtype) -> None:
    """`from_pretrained` loads a checkpoint in the type it was saved in."""
    model = make_objective(name).model.to(dtype)
    objective = objective_class(name)(model, **OPTIONS.get(name, {}))
    trained = {parameter.dtype for parameter in objective.parameters() if parameter.requires_grad}
    kept = {parameter.dtype for parameter in objective.parameters() if not parameter.requires_grad}
    assert trained == {dtype}
    assert kept <= {torch.promote_types(dtype, torch.float32)}  # slow copies
    assert loss_of(objective, name) > 0


@pytest.mark.parametrize("name", IN_A_MODULE)
def test_a_pickled_objective_is_the_same(name: str) -> None:
    objective, file = make_objective(name), io.BytesIO()
    torch.save(objective, file)
    file.seek(0)
    assert loss_of(torch.load(file, weights_only=False), name) == loss_of(objective, name)
