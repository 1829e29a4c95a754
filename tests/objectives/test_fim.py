"""Closed forms of `fim`: its loss is the causal one, and its figures are means over the tokens they name."""

import math

import pytest
import torch

from sslnlp.objectives.causal_lm import CausalLM
from tests.contract import make_objective, one_batch


def test_uniform_logits_give_ln_v_everywhere():
    objective = make_objective("fim", "llama").eval()
    torch.nn.init.zeros_(objective.model.get_output_embeddings().weight)
    output = objective(one_batch("fim"))
    ln_v = math.log(objective.model.config.vocab_size)
    assert output.loss.item() == pytest.approx(ln_v, rel=1e-5)
    for name in ("infill_loss", "plain_loss"):
        total, count = output.metrics[name].tolist()
        assert count > 0
        assert total / count == pytest.approx(ln_v, rel=1e-5)


def test_the_loss_is_the_causal_one_and_its_parts_add_up():
    objective = make_objective("fim", "llama").eval()
    batch = one_batch("fim")
    output, causal = objective(batch), CausalLM(objective.model).eval()(batch)
    assert torch.allclose(output.loss, causal.loss)
    targets = batch["labels"] != -100
    plain = targets & ~batch["infilling"]
    counts = {name: int(value[1]) for name, value in output.metrics.items() if value.ndim}
    middle = int((batch["middle"] & targets).sum())
    assert counts == {"infill_accuracy": middle, "infill_loss": middle, "plain_loss": int(plain.sum())}
    assert middle == int(batch["middle"].sum())
    # Rows of plain texts alone: everything is plain, and nothing an infill.
    batch["infilling"], batch["middle"] = torch.zeros_like(batch["infilling"]), torch.zeros_like(batch["middle"])
    alone = objective(batch)
    assert alone.metrics["plain_loss"][0] / alone.metrics["plain_loss"][1] == pytest.approx(alone.loss.item(), rel=1e-5)
    assert alone.metrics["infill_loss"].tolist() == [0, 0]
    assert not objective.likelihood
