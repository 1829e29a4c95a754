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
from sentence_transformers import CrossEncoder, MultiVectorEncoder
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from sslnlp.collators.ranking import RankingCollator
from sslnlp.collators.reranking import RerankingCollator
from sslnlp.errors import UserError
from sslnlp.export import export_model
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives import get_objective
from sslnlp.predict import Predictor
from sslnlp.report.subject import subject_of
from sslnlp.search.encoder import Encoder
from sslnlp.search.reranker import Reranker
from sslnlp.tokenizer import set_framing
from tests.contract import corpus, small_tokenizer

QUERY, TEXTS = "a question about the river otter", ["first text", "second text", *corpus()[:5], "the fox " * 50]
PROMPTS = {"query": "query: ", "document": "passage: "}


def exported(
    folder: Path, name: str, architecture: str, prompts: dict[str, str], lengths: dict[str, int], **options: Any
) -> Path:
    cls = get_objective(name)
    config = ModelConfig(architecture=architecture, size="nano")
    tokenizer = set_framing(small_tokenizer(), cls.framing)  # it is shared, and other tests frame it otherwise
    model = build_model(config, tokenizer, cls.wraps, max_length=64, seed=0, **cls.config_fields(()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return export_model(
        cls(model, **options).exported, tokenizer, folder, card={"title": "r"}, recipe={}, prompts=prompts,
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
    assert np.ptp(scores) > 0.01  # a thousand times what they may differ by
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


def test_predictions_of_pairs_are_the_scores_of_a_search(tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", "reranking", "bert", PROMPTS, {"query": 12})
    for query in (QUERY, "the fox sees " * 9):  # the last is cut
        found = Predictor.load(str(folder))([query] * len(TEXTS), TEXTS, batch_size=3)
        scores = Reranker.load(str(folder)).score(query, TEXTS)
        np.testing.assert_allclose([one.label for one in found], scores, atol=1e-5)


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


@pytest.mark.parametrize("prompts", [PROMPTS, {"query": "", "document": ""}])
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_late_interaction_scores_alike_everywhere(tmp_path: Path, architecture: str, prompts: dict[str, str]) -> None:
    folder = exported(tmp_path / "e", "late_interaction", architecture, prompts, {"query": 14, "document": 40})
    ours = Reranker.load(str(folder))
    theirs = MultiVectorEncoder(str(folder), device="cpu")
    for query in (QUERY, "fox", "the fox sees " * 9):  # the last is cut, as one of the texts is
        scores = ours.score(query, TEXTS, batch_size=3)
        assert np.ptp(scores) > 0.01  # a thousand times what they may differ by
        found = theirs.similarity(theirs.encode_query([query]), theirs.encode_document(TEXTS))
        np.testing.assert_allclose(found[0].numpy(), scores, atol=1e-5)
    # As in training: the objective's own vectors of the collator's own rows.
    objective = get_objective("late_interaction")(AutoModel.from_pretrained(folder)).eval()
    collator = RankingCollator(
        tokenizer=small_tokenizer(), query_prefix=prompts["query"], document_prefix=prompts["document"],
        query_length=14, document_length=40,
    )  # fmt: skip
    output = objective(collator([{"query": query, "positive": text} for query, text in zip("ab", TEXTS, strict=False)]))
    own = [ours.score(query, [text])[0] / len(ours.tokenizer(prompts["query"] + query)["input_ids"])
           for query, text in zip("ab", TEXTS, strict=False)]  # fmt: skip
    assert output.metrics["positive_similarity"].item() == pytest.approx(np.mean(own), abs=1e-5)


def test_late_interaction_that_sentence_transformers_saved_is_read_as_far_as_there(tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", "late_interaction", "bert", PROMPTS, {"query": 14, "document": 20})
    MultiVectorEncoder(str(folder), device="cpu").save(str(tmp_path / "saved"))
    theirs = MultiVectorEncoder(str(tmp_path / "saved"), device="cpu")
    query = "the fox sees " * 9
    found = theirs.similarity(theirs.encode_query([query]), theirs.encode_document(TEXTS))
    np.testing.assert_allclose(found[0].numpy(), Reranker.load(str(tmp_path / "saved")).score(query, TEXTS), atol=1e-5)


def test_the_card_of_late_interaction_says_how_to_use_it(tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", "late_interaction", "bert", PROMPTS, {"query": 14, "document": 40})
    card, names = typed(folder)
    scores = Reranker.load(str(folder)).score(names["query"], names["texts"])
    np.testing.assert_allclose(names["scores"].numpy(), scores, atol=1e-5)
    assert {"multi-vector", "reranker"} <= set(card.data.tags)
    assert "--reranker PATH_OR_NAME" in card.content


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", '[{"type": "x.Transformer"}, {"type": "x.Dense"}, {"type": "x.Normalize"}]', "not run: Dense"),
        ("modules.json", '[{"type": "x.Transformer"}]', "not run: vectors of any length"),
        ("sentence_bert_config.json", '{"query_expansion": {"pad_to": 32}}', "not run: query_expansion"),
        ("1_MultiVectorMask/config.json", '{"skiplist_words": ["."]}', "not run: skiplist_words"),
        ("config_sentence_transformers.json", '{"model_type": "CrossEncoder"}', "is no reranker but a BertModel"),
    ],
)
def test_late_interaction_of_another_kind_is_refused(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = exported(tmp_path / "e", "late_interaction", "bert", PROMPTS, {"query": 14, "document": 40})
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        Reranker.load(str(folder))


def test_late_interaction_is_no_encoder_but_a_report_reads_it(tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", "late_interaction", "bert", PROMPTS, {"query": 14, "document": 40})
    with pytest.raises(UserError, match="a vector for each token and none for a text: use it as --reranker"):
        Encoder.load(str(folder))
    assert subject_of(folder).encoder.encode(["a dog"], "query").shape == (1, 64)
