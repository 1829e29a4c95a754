"""Closed forms of the sentence autoencoder: who sees what, where gradients come from, what an export holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from sslnlp.errors import UserError
from sslnlp.export import export_model
from sslnlp.objectives.tsdae import TSDAE
from tests.contract import make_collator, make_objective, one_batch

ENCODERS = ("bert", "electra", "modernbert", "roberta")


@pytest.mark.parametrize("architecture", ENCODERS)
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_the_encoder_learns_through_the_vector_alone(architecture: str, pooling: str) -> None:
    """Cut the vector off, and nothing but the shared embeddings has a gradient from the loss."""
    objective = make_objective("tsdae", architecture)
    assert isinstance(objective, TSDAE)
    objective.pooling = pooling
    batch = one_batch("tsdae")
    vectors = objective.embed(batch)
    table = objective.model.get_input_embeddings().weight
    loss = objective.decoder.logits(objective.write(batch, vectors.detach()), table).logsumexp(-1).mean()
    loss.backward()
    reached = [name for name, p in objective.model.named_parameters() if p.grad is not None]
    assert reached == [name for name, p in objective.model.named_parameters() if p is table]
    objective.zero_grad()
    objective(batch).loss.backward()
    assert all(p.grad is not None for p in objective.parameters())


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_document_s_vector_is_that_of_the_document_alone(architecture: str) -> None:
    objective = make_objective("tsdae", architecture).eval()
    assert isinstance(objective, TSDAE)
    batch = one_batch("tsdae")
    vectors = objective.embed(batch)
    row = int((batch["document_ids"].max(1).values > 0).nonzero()[0])
    number = int(batch["document_ids"][row].max())
    own = batch["document_ids"][row] == number
    alone = {
        "input_ids": batch["input_ids"][row][own][None],
        "document_ids": torch.zeros(1, int(own.sum()), dtype=torch.long),
        "position_ids": batch["position_ids"][row][own][None],
    }
    assert torch.allclose(objective.embed(alone)[0, 0], vectors[row, number], atol=1e-5)


def test_uniform_logits_give_ln_v_and_zero_vectors_are_the_baseline() -> None:
    objective = make_objective("tsdae").eval()
    assert isinstance(objective, TSDAE)
    batch = one_batch("tsdae")
    targets = int((batch["labels"] != -100).sum())
    assert int(objective.num_targets(batch)) == targets
    torch.nn.init.zeros_(objective.decoder.norm.weight)  # the last norm gives 0, and so do the logits
    torch.nn.init.zeros_(objective.decoder.narrow.bias)
    output = objective(batch)
    assert output.loss.item() == pytest.approx(math.log(objective.model.config.vocab_size), rel=1e-5)
    total, count = output.metrics["loss_without_vector"].tolist()
    assert count == targets
    assert total / count == pytest.approx(output.loss.item(), rel=1e-5)  # logits that no vector moves


def test_the_vector_is_used_after_learning_by_heart() -> None:
    """What the decoder cannot guess from the words before has gone into the vector: without it the loss is higher."""
    objective = make_objective("tsdae").train()
    batch = one_batch("tsdae", rows=2)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    for _ in range(80):
        optimizer.zero_grad()
        objective(batch).loss.backward()
        optimizer.step()
    assert "loss_without_vector" not in objective(batch).metrics  # a second decoding is for evaluation
    output = objective.eval()(batch)
    total, count = output.metrics["loss_without_vector"].tolist()
    assert total / count > 1.5 * output.loss.item()


def test_the_export_is_a_sentence_transformers_model(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    objective = make_objective("tsdae").eval()
    assert isinstance(objective, TSDAE)
    assert not any("decoder" in name for name, _ in objective.exported.named_parameters() if "decoder." in name)
    tokenizer = make_collator("tsdae").tokenizer
    assert objective.pooling == "cls"
    folder = export_model(
        objective.exported, tokenizer, tmp_path / "export", card={"title": "t"}, recipe={}, pooling=objective.pooling,
        max_length=32,
    )  # fmt: skip
    text = "The cat sees a dog."
    theirs = torch.tensor(sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode([text])[0])
    ids = torch.tensor(tokenizer(text)["input_ids"])[None]
    encoding = {
        "input_ids": ids,
        "document_ids": torch.zeros_like(ids),
        "position_ids": torch.arange(ids.shape[1])[None],
    }
    ours = torch.nn.functional.normalize(objective.embed(encoding)[0, 0], dim=0)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_what_is_refused() -> None:
    for name, why in {
        "gpt2": "not an encoder",
        "llama": "not an encoder",
        "bart": "one stack",
        "t5": "one stack",
        "fnet": "no attention heads",
    }.items():
        assert why in str(TSDAE.refuses(AutoConfig.for_model(name)))
    model = make_objective("tsdae").model
    with pytest.raises(UserError, match=r"unknown objective\.pooling"):
        TSDAE(model, pooling="max")
