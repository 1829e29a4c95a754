"""Closed forms of `hybrid`: two terms with their own counts, and rows that look only where they may."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sslnlp import modes
from sslnlp.collators.hybrid import HybridCollator
from sslnlp.errors import UserError
from sslnlp.objectives.causal_lm import CausalLM
from sslnlp.objectives.hybrid import Hybrid
from tests.contract import make_objective, make_stream, one_batch, small_tokenizer


def batch_of(share: float, rows: int = 6):
    return HybridCollator(tokenizer=small_tokenizer(), masked_share=share)(make_stream("hybrid").rows(range(rows)))


def test_uniform_logits_give_ln_v_in_both_kinds():
    objective = make_objective("hybrid", "llama").eval()
    torch.nn.init.zeros_(objective.model.get_output_embeddings().weight)
    output = objective(one_batch("hybrid", rows=8))
    ln_v = math.log(objective.model.config.vocab_size)
    assert output.terms.tolist() == pytest.approx([ln_v / 2] * 2, rel=1e-5)
    for kind in ("masked", "causal"):
        total, count = output.metrics[f"{kind}_loss"].tolist()
        assert total / count == pytest.approx(ln_v, rel=1e-5)


def test_causal_rows_alone_are_causal_lm_and_masked_rows_have_no_part():
    objective = make_objective("hybrid", "qwen3").eval()
    batch = batch_of(0.0)
    output, causal = objective(batch), CausalLM(objective.model).eval()(batch)
    assert output.terms.tolist() == pytest.approx([0.0, causal.loss.item() / 2])
    assert objective.num_targets(batch).tolist() == [0, int((batch["labels"] != -100).sum())]
    assert output.metrics["masked_loss"].tolist() == [0, 0]
    assert output.metrics["causal_accuracy"][0] / output.metrics["causal_accuracy"][1] == pytest.approx(
        causal.metrics["accuracy"].item()
    )
    weighted = Hybrid(objective.model, masked_weight=0.9).eval()(batch)
    assert weighted.loss.item() == pytest.approx(0.1 * causal.loss.item())


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
def test_masked_rows_are_the_export_read_in_both_directions(architecture):
    """One document alone in a row: the stock model with is_causal=False, unpacked, gives the same masked loss."""
    objective = make_objective("hybrid", architecture).eval()
    batch = batch_of(1.0)
    b = 0
    real = batch["document_ids"][b] == 0
    ids, labels = batch["input_ids"][b][real][None], batch["labels"][b][real]
    alone = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "document_ids": torch.zeros_like(ids),
        "position_ids": torch.arange(ids.shape[1])[None],
        "labels": labels[None],
        "bidirectional": torch.ones_like(ids, dtype=torch.bool),
        "masked_index": (labels != -100).nonzero().flatten(),
        "causal_index": torch.zeros(0, dtype=torch.int64),
    }
    packed = objective(alone).metrics["masked_loss"]
    stock = modes.mode_logits(objective.model, Hybrid.modes["bidirectional"], ids, torch.ones_like(ids))[0]
    asked = labels[1:] != -100
    expected = torch.nn.functional.cross_entropy(stock[:-1][asked], labels[1:][asked], reduction="sum")
    assert packed[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert int(packed[1]) == int(asked.sum()) > 0


def test_a_model_that_cannot_look_ahead_is_refused(monkeypatch):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=2))  # fmt: skip
    Hybrid(model)
    with pytest.raises(UserError, match="masked_weight"):
        Hybrid(model, masked_weight=2.0)
    # As a transformers that does not know the field: the model reads on from left to right.
    configured = modes._configured
    monkeypatch.setattr(modes, "_configured", lambda model, fields: configured(model, {}))
    with pytest.raises(UserError, match="left to right even with is_causal=False"):
        Hybrid(model)
