"""Closed forms of RetroMAE: two terms, one head, gradients of the decoder through the vector, and the export."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from sslnlp.errors import UserError
from sslnlp.export import export_model
from sslnlp.nn import document_pool
from sslnlp.objectives.masked_lm import MaskedLM
from sslnlp.objectives.retromae import RetroMAE
from sslnlp.packed import hidden_states
from tests.contract import make_collator, make_objective, one_batch

ENCODERS = ("bert", "electra", "modernbert", "roberta")


def made(architecture: str = "bert") -> RetroMAE:
    objective = make_objective("retromae", architecture)
    assert isinstance(objective, RetroMAE)
    return objective


@pytest.mark.parametrize("architecture", ENCODERS)
def test_the_first_term_is_masked_lm(architecture: str) -> None:
    objective, batch = made(architecture).eval(), one_batch("retromae")
    output = objective(batch)
    assert output.terms is not None
    plain = MaskedLM(objective.model).eval()(batch)
    assert torch.allclose(output.terms[0], plain.loss, atol=1e-5)
    assert torch.equal(output.metrics["masked_accuracy"], plain.metrics["accuracy"])
    counts = [int((batch[name] != -100).sum()) for name in ("labels", "decoder_targets")]
    assert objective.num_targets(batch).tolist() == counts
    # The untrained head names every token about as badly as a uniform one: ln V, in both terms.
    expected = math.log(objective.model.config.vocab_size)
    assert output.terms.tolist() == pytest.approx([expected, expected], rel=0.2)


def test_the_decoder_teaches_the_encoder_through_the_vector_alone() -> None:
    objective, batch = made(), one_batch("retromae")
    vectors = document_pool(hidden_states(objective.model, batch), batch["document_ids"], "cls")
    objective.rebuild(batch, vectors.detach()).logsumexp(-1).mean().backward()
    reached = {name for name, p in objective.model.named_parameters() if p.grad is not None}
    assert not any(".encoder." in name for name in reached)
    objective.zero_grad()
    objective.rebuild(batch, vectors).logsumexp(-1).mean().backward()
    assert any(".encoder." in name for name, p in objective.model.named_parameters() if p.grad is not None)


def test_the_decoder_reads_the_original_not_the_mask() -> None:
    """What the encoder's mask hides, the decoder may see (of other tokens): other masks, the same rebuilding."""
    objective, batch = made().eval(), one_batch("retromae")
    vectors = torch.randn(6, 5, objective.model.config.hidden_size)
    masked_less = batch | {
        "input_ids": torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"]),
        "labels": torch.full_like(batch["labels"], -100),
    }
    assert torch.equal(objective.rebuild(batch, vectors), objective.rebuild(masked_less, vectors))


def test_the_vector_is_used_after_learning_by_heart() -> None:
    objective = made().train()
    batch = one_batch("retromae", rows=2)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    for _ in range(80):
        optimizer.zero_grad()
        objective(batch).loss.backward()
        optimizer.step()
    metrics = objective.eval()(batch).metrics
    blind, loss = (metrics[name][0] / metrics[name][1] for name in ("decoder_loss_without_vector", "decoder_loss"))
    assert blind > 1.5 * loss


def test_a_row_without_targets_costs_nothing_and_keeps_its_gradients() -> None:
    objective, batch = made(), one_batch("retromae")
    nothing = batch | {
        "labels": torch.full_like(batch["labels"], -100),
        "decoder_targets": torch.full_like(batch["labels"], -100),
        "target_index": batch["target_index"][:0],
    }
    output = objective(nothing)
    assert output.loss.item() == 0
    output.loss.backward()
    assert all(p.grad is not None for p in objective.parameters())


def test_the_export_fills_masks_and_embeds(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    objective = made("modernbert").eval()
    tokenizer = make_collator("retromae").tokenizer
    folder = export_model(
        objective.exported, tokenizer, tmp_path / "export", card={"title": "t"}, recipe={}, pooling=objective.pooling,
        max_length=32,
    )  # fmt: skip
    names = {name for name, _ in AutoModelForMaskedLM.from_pretrained(folder).named_parameters()}
    assert names == {name for name, _ in objective.model.named_parameters()}
    text = "The cat sees a dog."
    theirs = torch.tensor(sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode([text])[0])
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**tokenizer(text, return_tensors="pt")).last_hidden_state
    assert torch.allclose(torch.nn.functional.normalize(hidden[0, 0], dim=0), theirs, atol=1e-5)


def test_what_is_refused() -> None:
    for name in ("gpt2", "llama", "bart", "t5"):
        assert RetroMAE.refuses(AutoConfig.for_model(name)) is not None
    for rate in (0.0, 1.1):
        with pytest.raises(UserError, match="decoder_rate"):
            RetroMAE(made().model, decoder_rate=rate)
