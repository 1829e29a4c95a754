"""Encoder-decoders: the stock loss on the same pair, uniform logits, and an export that writes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.contract import make_collator, make_objective, make_stream, one_batch

NAMES = ("denoising", "span_corruption", "ul2")


@pytest.mark.parametrize("architecture", ["bart", "t5"])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_stock_models_on_each_document(name: str, architecture: str) -> None:
    objective = make_objective(name, architecture).eval()
    batch = one_batch(name, rows=3)
    total, count = 0.0, 0
    with torch.no_grad():
        for b in range(3):
            for d in range(int(batch["document_ids"][b].max()) + 1):
                source = batch["input_ids"][b][batch["document_ids"][b] == d]
                labels = batch["labels"][b][batch["decoder_document_ids"][b] == d]
                stock = objective.model(input_ids=source[None], labels=labels[None])
                total, count = total + float(stock.loss) * len(labels), count + len(labels)
        assert count == int(objective.num_targets(batch))
        assert float(objective(batch).loss) == pytest.approx(total / count, rel=1e-4)


def test_a_decoder_that_knows_nothing_pays_the_whole_vocabulary() -> None:
    objective = make_objective("denoising", "bart")
    with torch.no_grad():
        objective.model.get_output_embeddings().weight.zero_()
        loss = objective(one_batch("denoising")).loss
    assert float(loss) == pytest.approx(math.log(objective.model.config.vocab_size), abs=1e-4)


def test_rebuilt_accuracy_looks_at_the_corrupted_tokens_only() -> None:
    objective = make_objective("denoising", "bart").eval()
    batch = one_batch("denoising")
    with torch.no_grad():
        right, count = objective(batch).metrics["rebuilt_accuracy"].tolist()
    assert count == int(batch["corrupted"].sum()) > 0
    assert 0 <= right <= count


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("denoising", "bart"), ("span_corruption", "t5"), ("span_corruption", "bart"), ("ul2", "t5")],
)
def test_the_export_writes(name: str, architecture: str, tmp_path: Path) -> None:
    """Learn one document by heart; the reloaded stock model then writes it from its corrupted source."""
    objective = make_objective(name, architecture).train()
    collator = make_collator(name)
    batch = collator(make_stream(name).rows([0]))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(600):
        loss = objective(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    objective.eval().exported.save_pretrained(tmp_path)
    collator.tokenizer.save_pretrained(tmp_path)
    stock = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == stock.config.eos_token_id
    source = batch["input_ids"][0][batch["document_ids"][0] == 0]
    expected = batch["labels"][0][batch["decoder_document_ids"][0] == 0]
    written = stock.generate(source[None], max_new_tokens=len(expected) + 5, do_sample=False, num_beams=1)
    assert written[0, 0] == stock.config.decoder_start_token_id
    assert written[0, 1 : len(expected) + 1].tolist() == expected.tolist()
