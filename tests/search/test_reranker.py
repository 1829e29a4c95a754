import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from sslnlp.errors import UserError
from sslnlp.models import ModelConfig, build_model
from sslnlp.search.reranker import Reranker
from tests.contract import corpus, small_tokenizer
from tests.pretend_gpu import pretended

QUERY = "a dog sees the river otter"
TEXTS = ["", "a dog", *corpus()[:7], "the station is behind the house " * 40, "one mouse"]


def make(
    folder: Path, architecture: str = "bert", kind: type = AutoModelForSequenceClassification, **extra: int
) -> Path:
    """A folder of a tiny model whose scores differ between texts."""
    config = ModelConfig(architecture=architecture, size="nano")
    model = build_model(config, small_tokenizer(), kind, max_length=64, seed=0, **extra)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    tokenizer = small_tokenizer()
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


def stock(folder: Path, query: str = QUERY) -> np.ndarray:
    model = CrossEncoder(str(folder), device="cpu")
    return model.predict([(query, text) for text in TEXTS], activation_fn=torch.nn.Identity())


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_scores_are_the_logits_of_a_cross_encoder(tmp_path: Path, architecture: str) -> None:
    reranker = Reranker.load(str(make(tmp_path / "m", architecture, num_labels=1)))
    for query in (QUERY, QUERY * 30):  # the second is longer than the model reads
        scores = reranker.score(query, TEXTS, batch_size=4)
        assert scores.dtype == np.float32
        assert np.ptp(scores) > 1e-2
        np.testing.assert_allclose(scores, stock(tmp_path / "m", query), atol=1e-5)
    assert reranker.score(QUERY, []).shape == (0,)


def test_of_two_classes_the_score_is_the_log_odds_of_the_second(tmp_path: Path) -> None:
    scores = Reranker.load(str(make(tmp_path / "m", num_labels=2))).score(QUERY, TEXTS)
    both = stock(tmp_path / "m")
    np.testing.assert_allclose(scores, both[:, 1] - both[:, 0], atol=1e-5)


def test_prompts_and_the_query_length_of_the_folder_are_used(tmp_path: Path) -> None:
    plain = Reranker.load(str(make(tmp_path / "m", num_labels=1)))
    facts = {"prompts": {"query": "the fox ", "document": "a "}, "default_prompt_name": "query"}
    (tmp_path / "m" / "config_sentence_transformers.json").write_text(json.dumps(facts | {"max_lengths": {"query": 9}}))
    told = Reranker.load(str(tmp_path / "m"))
    assert told.fingerprint != plain.fingerprint
    prefixed = ["a " + text for text in TEXTS]
    np.testing.assert_array_equal(told.score("hill", TEXTS), plain.score("the fox hill", prefixed))
    # One more word than nine tokens hold changes nothing.
    words = ["the", "fox", "sees", "one", "mouse", "on", "a", "hill", "by", "the", "lake"]
    lengths = [len(small_tokenizer()(" ".join(words[:n]), add_special_tokens=False)["input_ids"]) for n in range(12)]
    kept = max(n for n, length in enumerate(lengths) if length <= 9)
    assert lengths[kept] == 9
    assert kept < len(words)
    np.testing.assert_array_equal(told.score(" ".join(words[2:]), TEXTS), plain.score(" ".join(words[:kept]), prefixed))
    (tmp_path / "m" / "config_sentence_transformers.json").write_text('{"max_lengths": {"query": "9"}}')
    with pytest.raises(UserError, match="holds '9', no length"):
        Reranker.load(str(tmp_path / "m"))


def test_on_a_gpu_late_interaction_waits_once_a_batch_whatever_the_number_of_texts(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", kind=AutoModel)
    steps = [{"type": f"models.{name}", "path": ""} for name in ("Transformer", "MultiVectorMask", "Normalize")]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "MultiVectorEncoder"}')
    expected = Reranker.load(str(folder)).score(QUERY, TEXTS)
    waited = []
    for texts in (TEXTS[:2], TEXTS):
        with pretended() as waits:
            reranker = Reranker.load(str(folder))
            waits.clear()
            scores = reranker.score(QUERY, texts)
        waited.append(len(waits))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert waited[0] == waited[1]


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForMaskedLM])
def test_a_model_without_a_head_for_pairs_is_refused(tmp_path: Path, kind: type) -> None:
    folder = make(tmp_path / "m", kind=kind)
    with pytest.raises(UserError, match=r"is no reranker but a Bert\w+, .* sslnlp train finetune_reranker"):
        Reranker.load(str(folder))


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sorts texts into 3 classes"):
        Reranker.load(str(make(tmp_path / "three", num_labels=3)))
    folder = make(tmp_path / "m", num_labels=1)
    weights = load_file(folder / "model.safetensors")
    broken = shutil.copytree(folder, tmp_path / "headless")
    save_file({name: w for name, w in weights.items() if "classifier" not in name}, broken / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 2 of its weights, classifier\.bias"):
        Reranker.load(str(broken))
    (folder / "model.safetensors").write_text("garbage")
    with pytest.raises(UserError, match="cannot load the reranker"):
        Reranker.load(str(folder))
    for text, message in (("{", "not readable JSON"), ("[]", "holds list")):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            Reranker.load(str(folder))
    with pytest.raises(UserError, match="no model folder"):
        Reranker.load(str(tmp_path / "nowhere" / "deep" / "down"))
