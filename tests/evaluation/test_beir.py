"""BEIR folders: what is read, what is refused, and how embedders are ranked on them."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from sslnlp.errors import UserError
from sslnlp.evaluation.beir import beir_measures, evaluate_embedder, load_beir
from sslnlp.nn import Pooling
from sslnlp.search.encoder import Encoder, EncoderSettings
from sslnlp.tokenizer import set_framing, train_tokenizer
from sslnlp.types import Encoding

CORPUS = [
    {"_id": "d1", "title": "Cats", "text": "cats purr"},
    {"_id": "d2", "title": "", "text": "dogs bark"},
    {"_id": "d3", "text": "rice grows"},
]
QUERIES = [{"_id": "q1", "text": "purr"}, {"_id": "q2", "text": "bark"}, {"_id": "unjudged", "text": "grows"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\nq2\tgone\t1\nno text\td1\t1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, CORPUS)) + "\n")
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, QUERIES)) + "\n")
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS)
    return tmp_path


def test_load(folder: Path) -> None:
    beir = load_beir(folder)
    assert beir.corpus == {"d1": "Cats cats purr", "d2": "dogs bark", "d3": "rice grows"}
    assert beir.queries == {"q1": "purr", "q2": "bark"}
    assert beir.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2, "gone": 1}}


def test_headerless_judgements_and_a_byte_order_mark(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\r\n")
    corpus = folder / "corpus.jsonl"
    corpus.write_bytes(b"\xef\xbb\xbf" + corpus.read_bytes())
    assert load_beir(folder).qrels == {"q1": {"d1": 1}}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("corpus.jsonl", None, "no file .*corpus.jsonl"),
        ("queries.jsonl", None, "no file .*queries.jsonl"),
        ("qrels/test.tsv", None, "no file .*test.tsv"),
        ("corpus.jsonl", b"", "is empty"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "x"}\nnot json\n', "line 2: not JSON"),
        ("corpus.jsonl", b'{"_id": "d1"}\n', "line 1: no text in column 'text'"),
        ("queries.jsonl", b'{"_id": 3, "text": "x"}\n', "column '_id'"),
        ("queries.jsonl", b'["q1", "x"]\n', "column '_id'"),
        (
            "corpus.jsonl",
            b'{"_id": "d1", "text": "x"}\n\n{"_id": "d1", "text": "y"}\n',
            "line 3: the id 'd1' comes twice",
        ),
        (
            "queries.jsonl",
            b'{"_id": "q1", "text": "x"}\n{"_id": "q1", "text": "x"}\n',
            "line 2: the id 'q1' comes twice",
        ),
        ("corpus.jsonl", b"\xff\xfe\x00", "not UTF-8"),
        ("qrels/test.tsv", b"q1\td1\n", "line 1: expected"),
        ("qrels/test.tsv", b"q1\td1\thigh\n", "line 1: expected"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\td1\t1\nq1\td1\t0\n", "line 3: 'd1' is judged another way for 'q1'"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\n", "holds no judgements"),
        ("qrels/test.tsv", b"other\td1\t1\n", "no query id of"),
        ("qrels/test.tsv", b"q1\td1\t0\nother\td1\t1\n", "no query has a relevant document"),
    ],
)
def test_bad_folders(folder: Path, name: str, content: bytes | None, says: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        load_beir(folder)
    assert "\n" not in str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        load_beir(tmp_path / "nowhere")


def test_an_embedder_is_ranked_by_its_vectors(folder: Path) -> None:
    words = ["purr", "bark", "grows"]

    def encode(texts: list[str]) -> np.ndarray:
        return np.array([[word in text for word in words] for text in texts], dtype=np.float32)

    beir = load_beir(folder)
    figures = evaluate_embedder(encode, beir)
    assert figures["mrr@10"] == 1
    assert figures["recall@100"] == (1 + 1 / 2) / 2  # the absent document cannot be found
    backwards = evaluate_embedder(encode, beir, encode_queries=lambda texts: -encode(texts))
    assert backwards["mrr@10"] == 1 / 3


@pytest.fixture(scope="module")
def embedder() -> tuple[BertModel, PreTrainedTokenizerFast]:
    tokenizer = set_framing(train_tokenizer(["cats purr dogs bark rice grows"] * 3, vocab_size=500), "encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    return BertModel(config, add_pooling_layer=False).train(), tokenizer


def test_an_encoder_keeps_the_order_and_ignores_batching(embedder: tuple[BertModel, PreTrainedTokenizerFast]) -> None:
    def encoder(**settings: Any) -> Encoder:
        return Encoder(*embedder, EncoderSettings(**settings), "", "")

    texts = ["cats", "dogs bark and cats purr", "", "rice grows"]
    vectors = encoder().encode(texts, "document", batch_size=2)
    assert vectors.shape == (4, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(encoder().encode([text], "document")[0], vector, atol=1e-5)
    plain = {"pooling": "cls", "normalize": False}
    prefixed = encoder(**plain, prompts={"query": "cats "}).encode(["purr"], "query")
    whole = encoder(**plain).encode(["cats purr"], "query")
    np.testing.assert_array_equal(prefixed, whole)
    assert abs(np.linalg.norm(whole) - 1) > 0.1


def test_beir_measures_encode_each_side_in_its_way(
    folder: Path, embedder: tuple[BertModel, PreTrainedTokenizerFast]
) -> None:
    model, tokenizer = embedder
    seen: dict[str, int] = {"queries": 0, "documents": 0}

    def tokenize(side: str, texts: Sequence[str]) -> Encoding:
        seen[side] += len(texts)
        return dict(tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False))

    def embed(encoding: Encoding) -> torch.Tensor:
        assert not model.training
        return Pooling("mean")(model(**encoding).last_hidden_state, encoding["attention_mask"])

    collator = SimpleNamespace(
        encode_queries=lambda texts: tokenize("queries", texts),
        encode_documents=lambda texts: tokenize("documents", texts),
    )
    figures = beir_measures(SimpleNamespace(model=model, embed=embed), collator, folder, batch_size=2)
    assert seen == {"queries": 2, "documents": 3}
    assert figures.keys() == {"beir_ndcg@10", "beir_mrr@10", "beir_recall@100", "beir_map"}
    assert figures["beir_recall@100"] == 0.75  # everything but the absent document is within 100
