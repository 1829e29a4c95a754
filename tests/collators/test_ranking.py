"""Pairs into batches: prefixes, lengths, hashes of equal texts, and the drawing of negatives."""

import itertools
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sslnlp.collators.ragged import pack_texts
from sslnlp.collators.ranking import RankingCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import set_framing, train_tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran", "cats and dogs ran on a long long mat", "query: passage:"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return set_framing(train_tokenizer(TEXTS * 3, vocab_size=600), "encoder")


def rows(n: int = 3, **more: Any) -> list[dict[str, Any]]:
    return [{"query": f"cat {i}", "positive": TEXTS[i % 3], "position": i, **more} for i in range(n)]


def decoded(tokenizer: PreTrainedTokenizerFast, encoding: dict[str, torch.Tensor]) -> list[str]:
    return [text.strip() for text in tokenizer.batch_decode(encoding["input_ids"], skip_special_tokens=True)]


def test_sides_carry_their_prefixes_and_lengths(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = RankingCollator(
        tokenizer=tokenizer, query_prefix="query: ", document_prefix="passage: ", document_length=6, query_length=30
    )
    batch = collator(rows())
    assert collator.makes <= batch.keys()
    assert "negative" not in batch
    assert decoded(tokenizer, batch["query"]) == ["query: cat 0", "query: cat 1", "query: cat 2"]
    assert batch["query"].keys() == {"input_ids", "attention_mask"}
    assert batch["positive"]["input_ids"].shape == (3, 6)
    assert all(text.startswith("passage: ") for text in decoded(tokenizer, batch["positive"]))
    assert batch["position"].tolist() == [0, 1, 2]


def test_hashes_tell_equal_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    given = [
        {"query": "A cat ", "positive": "a dog ran"},
        {"query": "a cat", "positive": "A dog ran"},
        {"query": "a cow", "positive": "a dog sat"},
    ]
    batch = RankingCollator(tokenizer=tokenizer)(given)
    assert "position" not in batch
    for name in ("query_hash", "positive_hash"):
        a, b, c = batch[name].tolist()
        assert a == b != c
    assert batch["query_hash"][0] != batch["positive_hash"][0]


def test_negatives_stand_row_by_row(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = RankingCollator(tokenizer=tokenizer)
    given = [{**row, "negatives": [f"mat {i}", f"dog {i}"]} for i, row in enumerate(rows())]
    batch = collator(given)
    assert decoded(tokenizer, batch["negative"]) == ["mat 0", "dog 0", "mat 1", "dog 1", "mat 2", "dog 2"]
    assert batch["negative_hash"].shape == (6,)
    assert torch.equal(
        collator(rows(negative=["a", "b"]))["negative_hash"], collator(rows(negatives=["a", "b"]))["negative_hash"]
    )
    single = collator([{**row, "negative": "a dog ran"} for row in rows()])
    assert single["negative_hash"][0] == single["positive_hash"][1]  # the same text on either side


def test_negatives_are_drawn_by_position_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = RankingCollator(tokenizer=tokenizer, num_negatives=2)
    given = rows(40, negatives=[f"dog {i}" for i in range(8)])
    whole = collator(given)["negative_hash"].view(40, 2)
    assert torch.equal(
        whole, torch.cat([collator(given[:7])["negative_hash"], collator(given[7:])["negative_hash"]]).view(40, 2)
    )
    assert (whole[:, 0] != whole[:, 1]).all()  # without replacement
    # Each of the 8 is drawn for a row with probability 1/4: that one is never seen in 40 rows has chance 1e-5.
    assert len(whole.unique()) == 8
    other = RankingCollator(tokenizer=tokenizer, num_negatives=2, seed=1)(given)["negative_hash"].view(40, 2)
    assert not torch.equal(whole, other)
    assert "negative" not in RankingCollator(tokenizer=tokenizer, num_negatives=0)(given)


def test_scores_go_with_the_negatives_that_are_drawn(tokenizer: PreTrainedTokenizerFast) -> None:
    given = rows(20, negatives=[f"dog {i}" for i in range(5)], scores=[9.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    batch = RankingCollator(tokenizer=tokenizer, num_negatives=2)(given)
    assert (batch["scores"].shape, batch["scores"].dtype) == ((20, 3), torch.float32)
    texts = decoded(tokenizer, batch["negative"])
    assert texts == [f"dog {int(score)}" for row in batch["scores"].tolist() for score in row[1:]]
    assert batch["scores"][:, 0].eq(9).all()
    assert len(batch["scores"][:, 1].unique()) == 5
    assert RankingCollator(tokenizer=tokenizer)(given)["scores"].tolist() == [given[0]["scores"]] * 20
    for without in (given[:3] + rows(1, negatives=given[0]["negatives"]), rows(3, scores=[1.0])):
        assert "scores" not in RankingCollator(tokenizer=tokenizer)(without)


@pytest.mark.parametrize(
    ("options", "given", "says"),
    [
        ({}, {"query": "a", "positive": "b", "negative": "c", "scores": [1.0]}, "1 scores and 1 negatives"),
        ({}, {"query": "a", "positive": "b", "negative": "c", "scores": [1.0, float("nan")]}, "finite numbers"),
        ({}, {"query": "a", "positive": "b", "negative": "c", "scores": 2.0}, "column 'scores'"),
        ({}, {"query": "a", "positive": None}, "column 'positive'"),
        ({}, {"query": " ", "positive": "b"}, "column 'query'"),
        ({}, {"positive": "b"}, "column 'query'"),
        ({}, {"query": "a", "positive": "b", "negatives": 3}, "list of texts"),
        ({}, {"query": "a", "positive": "b", "negatives": ["c", ""]}, "list of texts"),
        ({"num_negatives": 2}, {"query": "a", "positive": "b", "negatives": ["c"]}, "has 1 negatives"),
    ],
)
def test_bad_rows(
    tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], given: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        RankingCollator(tokenizer=tokenizer, **options)([given])


def test_uneven_negatives_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    first, second, _ = rows()
    with pytest.raises(UserError, match="different numbers of negatives"):
        RankingCollator(tokenizer=tokenizer)([{**first, "negative": "a"}, second])


@pytest.mark.parametrize("options", [{"query_length": 2}, {"document_length": 0}, {"num_negatives": -1}])
def test_bad_options(tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"collator\."):
        RankingCollator(tokenizer=tokenizer, **options)


def test_every_token_has_one_place_and_texts_stay_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = RankingCollator(tokenizer=tokenizer)([{**row, "negatives": [TEXTS[2], "a"]} for row in rows(9)])
    sides = [batch[name]["attention_mask"] for name in ("query", "positive", "negative")]
    real = torch.cat([mask.flatten() for mask in sides]).bool()
    text_of = torch.cat([torch.arange(len(m)).repeat_interleave(m.shape[1]) + 100 * i for i, m in enumerate(sides)])
    places = batch["places"]
    assert places[places >= 0].sort().values.tolist() == real.nonzero()[:, 0].tolist()
    homes: dict[int, int] = {}
    for number, row in enumerate(places.tolist()):
        filled = [place for place in row if place >= 0]
        assert row == filled + [-1] * (len(row) - len(filled))
        changes = [b for a, b in itertools.pairwise([-2, *filled]) if text_of[a] != text_of[b] or a == -2]
        for place in changes:  # a text begins here: never elsewhere as well
            assert homes.setdefault(int(text_of[place]), number) == number
        assert len({int(text_of[place]) for place in filled}) == len(changes)
        assert all(b - a == 1 for a, b in itertools.pairwise(filled) if text_of[a] == text_of[b])
    assert len(homes) == sum(len(mask) for mask in sides)


def test_rows_are_as_wide_as_the_longest_text_and_full() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 101, (200,), generator=generator)
    mask = (torch.arange(100) < lengths[:, None]).long()
    places = pack_texts([mask[:80], mask[80:]])
    assert places.shape[1] == 104  # 100, in eights
    assert mask.sum() / places.numel() > 0.95
