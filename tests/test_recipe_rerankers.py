"""From mined pairs to a reranker that search loads: by a cross-encoder, and by late interaction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sslnlp.recipe import load_recipe, run
from sslnlp.search import reranker as search_reranker
from sslnlp.search.reranker import CrossEncoder, LateInteraction, Reranker
from tests.contract import corpus

TINY = [
    *("model.size=nano", "tokenizer.vocab_size=520", "train.steps=4", "train.epochs=null", "train.batch_size=8"),
    *("data.valid_fraction=0.2", "collator.query_prefix=q: "),
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    texts = corpus()[:40]
    rows = [
        {"query": text[:20], "positive": text, "negatives": [texts[n - 3], texts[n - 9]]}
        for n, text in enumerate(texts)
    ]
    path = tmp_path / "mined.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_cross_encoder_hands_on_its_prefix_and_is_measured_against_chance(pairs: Path, tmp_path: Path) -> None:
    keys = [*TINY, f"data.train={pairs}", "collator.max_length=48", "collator.query_length=9"]
    first = run(load_recipe("finetune_reranker", [*keys, f"out={tmp_path / 'a'}"]))
    measures = json.loads((first / "recipe.json").read_text())["result"]["measures"]
    assert measures["chance_mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert 1 / 3 <= measures["mrr@10"] <= 1
    reranker = Reranker.load(str(first / "export"))
    assert isinstance(reranker, CrossEncoder)
    words = "the fox sees one mouse"
    np.testing.assert_array_equal(reranker.score(words * 3, corpus()[:5]), reranker.score(words * 4, corpus()[:5]))

    # The next stage starts from it, with plain pairs: other rows' texts are the negatives.
    plain = tmp_path / "plain.jsonl"
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    plain.write_text("\n".join(json.dumps({name: row[name] for name in ("query", "positive")}) for row in rows))
    go_on = [key for key in TINY if "prefix" not in key]
    go_on += [f"data.train={plain}", f"model.pretrained={first / 'export'}", f"out={tmp_path / 'b'}"]
    second = run(load_recipe("finetune_reranker", go_on))
    collator = json.loads((second / "recipe.json").read_text())["recipe"]["collator"]
    assert (collator["query_prefix"], collator["query_length"]) == ("q: ", 9)
    measures = json.loads((second / "recipe.json").read_text())["result"]["measures"]
    assert 0.3 < measures["chance_mrr@10"] < 1  # of five texts, or fewer where one is relevant


def test_late_interaction_is_a_ranker_of_another_objective(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [*TINY, f"data.train={pairs}", "objective.name=late_interaction", "collator.query_length=9"]
    out = run(load_recipe("finetune_ranking", [*keys, f"out={tmp_path / 'a'}"]))
    reranker = Reranker.load(str(out / "export"))
    assert isinstance(reranker, LateInteraction)
    scores = reranker.score("the fox", corpus()[:5])
    assert np.ptp(scores) > 0
    assert scores.max() < 9  # a cosine for each token that is read

    # What it has read it does not read again, and no more of it is kept than is said.
    reads: list[int] = []
    encode = reranker._vectors
    monkeypatch.setattr(reranker, "_vectors", lambda texts, kind: reads.append(len(texts)) or encode(texts, kind))
    again = reranker.score("the fox", [*corpus()[3:6], corpus()[3]])
    assert reads == [1, 1]  # the query, and the one text that is new
    np.testing.assert_allclose(again[[0, 1, 3]], scores[[3, 4, 3]], rtol=1e-5)
    monkeypatch.setattr(search_reranker, "KEPT", reranker._kept // 2)
    other = reranker.score("the fox", corpus()[6:8])
    assert reranker._kept == sum(kept.nbytes for kept in reranker._known.values()) <= search_reranker.KEPT
    assert list(reranker._known)[-1] == corpus()[7]
    fresh = Reranker.load(str(out / "export"))
    np.testing.assert_allclose(fresh.score("the fox", corpus()[6:8]), other, rtol=1e-5)
