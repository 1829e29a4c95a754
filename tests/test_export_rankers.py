"""Rerankers leave folders that sentence-transformers, transformers and `sslnlp search` score alike with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sslnlp.collators.reranking import RerankingCollator
from sslnlp.export import export_model
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives import get_objective
from sslnlp.search.reranker import Reranker
from tests.contract import corpus, small_tokenizer

QUERY, TEXTS = "a question about the river otter", ["first text", "second text", *corpus()[:5], "the fox " * 50]
PROMPTS = {"query": "query: ", "document": "passage: "}


def exported(
    folder: Path, name: str, architecture: str, prompts: dict[str, str], lengths: dict[str, int], **options: Any
) -> Path:
    cls = get_objective(name)
    config = ModelConfig(architecture=architecture, size="nano")
    model = build_model(config, small_tokenizer(), cls.wraps, max_length=64, seed=0, **cls.config_fields(()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return export_model(
        cls(model, **options).exported, small_tokenizer(), folder, card={"title": "r"}, recipe={}, prompts=prompts,
        lengths=lengths, per_token=cls.per_token, max_length=64,
    )  # fmt: skip


def typed(folder: Path) -> tuple[ModelCard, dict[str, Any]]:
    """The card, and what its first snippet leaves behind."""
    card = ModelCard.load(folder / "README.md")
    block = re.findall(r"```python\n(.*?)```", card.content, re.S)[0].replace("PATH_OR_NAME", str(folder))
    names: dict[str, Any] = {}
    exec(block, names)
    return card, names


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_a_cross_encoder_scores_alike_everywhere(tmp_path: Path, architecture: str, loss: str) -> None:
    folder = exported(tmp_path / "e", "reranking", architecture, PROMPTS, {"query": 20}, loss=loss)
    ours = Reranker.load(str(folder))
    scores = ours.score(QUERY, TEXTS)
    assert np.ptp(scores) > 0.05
    pairs = [(PROMPTS["query"] + QUERY, PROMPTS["document"] + text) for text in TEXTS]
    theirs = CrossEncoder(str(folder), device="cpu")
    assert theirs.max_seq_length == 64
    shown = 1 / (1 + np.exp(-scores)) if loss == "pointwise" else scores
    np.testing.assert_allclose(theirs.predict(pairs), shown, atol=1e-5)
    tokenizer, model = (auto.from_pretrained(folder) for auto in (AutoTokenizer, AutoModelForSequenceClassification))
    for pair, score in zip(pairs, scores, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(*pair, truncation=True, return_tensors="pt")).logits
        assert logits.item() == pytest.approx(float(score), abs=1e-5)
    # Trained on the same pairs.
    collator = RerankingCollator(
        tokenizer=small_tokenizer(), query_prefix="query: ", document_prefix="passage: ", query_length=20, max_length=64
    )
    batch = collator([{"query": QUERY, "positive": TEXTS[0], "negatives": TEXTS[1:]}])
    with torch.no_grad():
        np.testing.assert_allclose(model(**batch["pairs"]).logits[:, 0].numpy(), scores, atol=1e-5)


def test_the_query_is_read_as_far_as_in_training(tmp_path: Path) -> None:
    ours = Reranker.load(str(exported(tmp_path / "e", "reranking", "bert", PROMPTS, {"query": 12})))
    long = "the fox sees " * 9
    np.testing.assert_array_equal(ours.score(long, TEXTS), ours.score(long + "a dog", TEXTS))
    assert np.abs(ours.score("the fox", TEXTS) - ours.score("the fox a dog", TEXTS)).max() > 1e-3


@pytest.mark.parametrize("prompts", [PROMPTS, {"query": "", "document": ""}])
def test_the_card_of_a_cross_encoder_says_how_to_use_it(tmp_path: Path, prompts: dict[str, str]) -> None:
    folder = exported(tmp_path / "e", "reranking", "bert", prompts, {"query": 20})
    card, names = typed(folder)
    np.testing.assert_allclose(
        names["scores"], Reranker.load(str(folder)).score(names["query"], names["texts"]), atol=1e-5
    )
    assert card.data.pipeline_tag == "text-ranking"
    assert card.data.library_name == "sentence-transformers"
    assert {"cross-encoder", "reranker"} <= set(card.data.tags)
    assert '`sslnlp search query INDEX "a question" --reranker PATH_OR_NAME`' in card.content
    assert "LABEL_0" not in card.content
    config = json.loads((folder / "config.json").read_text())
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
