"""Pairs of query and document: what stands where, what is cut, and which texts are no negatives."""

import copy
from collections import Counter
from typing import Any

import datasets
import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from sslnlp.collators.reranking import DRAWN, RerankingCollator
from sslnlp.data.table_rows import TableRows
from sslnlp.errors import UserError
from sslnlp.tokenizer import set_framing, train_tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran", "cats and dogs ran on a long long mat", "query: passage:"]
PAIRS = [("cat 0", "the cat sat"), ("cat 0", "a dog ran"), ("cat 2", "a long mat"), ("cat 3", "cats and dogs")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return set_framing(train_tokenizer(TEXTS * 3, vocab_size=600), "encoder")


@pytest.fixture(scope="module")
def table() -> TableRows:
    columns = {"query": [q for q, _ in PAIRS], "positive": [p for _, p in PAIRS]}
    return TableRows(datasets.Dataset.from_dict(columns))


def row(position: int = 0, **more: Any) -> dict[str, Any]:
    return {"query": "cat 0", "positive": "the cat sat", "position": position, **more}


def decoded(tokenizer: PreTrainedTokenizerFast, batch: dict[str, Any]) -> list[str]:
    texts = tokenizer.batch_decode(batch["pairs"]["input_ids"])
    return [text.replace(str(tokenizer.pad_token), "").strip() for text in texts]


def test_a_query_stands_before_each_of_its_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = RerankingCollator(tokenizer=tokenizer, query_prefix="query: ", document_prefix="passage: ")
    given = [row(4, negatives=["a dog ran", "a mat"]), row(7, query="dogs", negatives=["the mat", "the dog"])]
    batch = collator(given)
    assert batch.keys() == {"pairs", "relevance", "position"}
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    expected = [
        ("cat 0", "the cat sat"), ("cat 0", "a dog ran"), ("cat 0", "a mat"),
        ("dogs", "the cat sat"), ("dogs", "the mat"), ("dogs", "the dog"),
    ]  # fmt: skip
    shown = [text.replace(" ", "") for text in decoded(tokenizer, batch)]
    assert shown == [f"{cls}query: {q}{sep}passage: {d}{sep}".replace(" ", "") for q, d in expected]
    assert batch["relevance"].tolist() == [[1, 0, 0]] * 2
    assert batch["position"].tolist() == [4, 7]
    assert "position" not in collator([{key: value for key, value in given[0].items() if key != "position"}])


def test_the_document_is_the_second_segment_where_there_are_two(tokenizer: PreTrainedTokenizerFast) -> None:
    assert "token_type_ids" not in RerankingCollator(tokenizer=tokenizer)([row(negatives=["a mat"])])["pairs"]
    bert = copy.deepcopy(tokenizer)
    bert.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    pairs = RerankingCollator(tokenizer=bert)([row(negatives=["a long long mat and a dog"])])["pairs"]
    ids, real = pairs["input_ids"][0], int(pairs["attention_mask"][0].sum())
    first = int((ids == tokenizer.sep_token_id).nonzero()[0])
    assert real < len(ids)  # padding belongs to none
    assert pairs["token_type_ids"][0].tolist() == [0] * (first + 1) + [1] * (real - first - 1) + [0] * (len(ids) - real)


@pytest.mark.parametrize(("query_length", "kept"), [(5, 5), (64, 14)])  # (32 - 3) // 2 is half of the pair
def test_the_document_is_cut_and_the_query_at_its_own_length(
    tokenizer: PreTrainedTokenizerFast, query_length: int, kept: int
) -> None:
    collator = RerankingCollator(tokenizer=tokenizer, max_length=32, query_length=query_length)
    ids = collator([row(query="cat " * 50, positive="dog " * 50, negatives=["dog"])])["pairs"]["input_ids"]
    query, document = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("cat " * 50, "dog " * 50))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert ids[0].tolist() == [cls, *query[:kept], sep, *document[: 32 - 3 - kept], sep]
    short = collator([row(query="cat", positive="dog " * 50, negatives=["dog"])])["pairs"]["input_ids"]
    assert short.shape == (2, 32)  # what a short query leaves is the document's
    assert (short[0] == sep).sum() == 2


def test_on_the_left_the_query_is_cut_at_its_own_length_too(tokenizer: PreTrainedTokenizerFast) -> None:
    left = copy.deepcopy(tokenizer)
    left.truncation_side = "left"
    texts = "dog" + " cat" * 50, "cat" + " dog" * 50
    collator = RerankingCollator(tokenizer=left, max_length=32, query_length=5)
    ids = collator([row(query=texts[0], positive=texts[1], negatives=["dog"])])["pairs"]["input_ids"]
    query, document = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert ids[0].tolist() == [cls, *query[-5:], sep, *document[5 + 3 - 32 :], sep]


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="pairs need a fast tokenizer"):
        RerankingCollator(tokenizer=ByT5Tokenizer())


def test_relevant_texts_among_the_negatives_are_left_out(tokenizer: PreTrainedTokenizerFast, table: TableRows) -> None:
    given = [row(negatives=["THE cat sat ", "a dog ran", "a long mat"])]
    alone, told = RerankingCollator(tokenizer=tokenizer), RerankingCollator(tokenizer=tokenizer, table=table)
    assert alone(given)["relevance"].tolist() == [[1, -100, 0, 0]]
    assert told(given)["relevance"].tolist() == [[1, -100, -100, 0]]  # another row has it for the same query
    assert told([row(query="cat 2", negatives=["a dog ran"])])["relevance"].tolist() == [[1, 0]]
    assert told.for_evaluation(0)(given)["relevance"].tolist() == [[1, -100, -100, 0]]


def test_rows_without_negatives_draw_them_by_position(tokenizer: PreTrainedTokenizerFast, table: TableRows) -> None:
    collator = RerankingCollator(tokenizer=tokenizer, table=table, seed=1)
    batch = collator([row(n) for n in range(40)])
    assert batch["relevance"].shape == (40, 1 + DRAWN)
    texts = [text for n in range(40) for text in decoded(tokenizer, collator([row(n, query="x")]))[1:]]
    counts = Counter(texts)
    assert len(counts) == len(PAIRS)  # every text of the table
    assert min(counts.values()) > 10
    # A drawn text that is relevant to the query is left out: two of the four are relevant to "cat 0".
    share = (batch["relevance"][:, 1:] == -100).float().mean()
    assert 0.35 < share < 0.65
    together, apart = collator([row(3), row(9)]), collator([row(9)])
    assert decoded(tokenizer, together)[1 + DRAWN :] == decoded(tokenizer, apart)


def test_a_number_of_negatives_is_drawn_anew_at_each_position(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = RerankingCollator(tokenizer=tokenizer, num_negatives=2)
    texts = ["a", "dog", "mat", "long"]
    seen = {tuple(decoded(tokenizer, collator([row(n, negatives=texts)]))[1:]) for n in range(60)}
    assert len(seen) == 12  # ordered pairs of four
    assert collator([row(5, negatives=texts)])["relevance"].tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(negatives=["a"]), row(negatives=["a", "b"])], r"different numbers of negatives \(1 to 2\)"),
        ([row(negatives=["a", " "])], "a text or a list of texts"),
        ([row(negatives="")], "a text or a list of texts"),
        ([row(negatives=[3])], "a text or a list of texts"),
        ([row(negatives=[])], "no negatives: find some with sslnlp search mine"),
        ([row()], "no negatives: find some with sslnlp search mine"),
        ([row(query=" ", negatives=["a"])], "column 'query' must hold text"),
        ([row(positive=None, negatives=["a"])], "column 'positive' must hold text"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        RerankingCollator(tokenizer=tokenizer)(rows)


def test_options_out_of_range_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    for option, value in (("max_length", 4), ("query_length", 0), ("num_negatives", 0)):
        with pytest.raises(UserError, match=rf"collator\.{option}={value} "):
            RerankingCollator(tokenizer=tokenizer, **{option: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"has 1 negatives, but collator.num_negatives=2"):
        RerankingCollator(tokenizer=tokenizer, num_negatives=2)([row(negatives=["a"])])
