"""What the small decoders can see: nothing ahead, nothing of other documents, of their own document one vector."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, ElectraConfig

from sslnlp.errors import UserError
from sslnlp.keyed import keyed_uniform, row_keyed_dropout
from sslnlp.objectives.decoder import EnhancedDecoder, SentenceDecoder, places

DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, -1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
PLACES = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 0], list(range(10))])
V, H = 50, 16


def config(**fields: Any) -> BertConfig:
    return BertConfig(vocab_size=V, hidden_size=H, num_attention_heads=2, hidden_dropout_prob=0.0, **fields)


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, V, DOCUMENTS.shape, generator=generator)
    return {
        "text_BT": text.masked_fill(DOCUMENTS < 0, -100),
        "document_ids_BT": DOCUMENTS,
        "position_ids_BT": PLACES,
        "vectors_BDH": torch.randn(2, 3, H, generator=generator),
        "table_VE": torch.randn(V, H, generator=generator),
    }


@pytest.fixture
def writer() -> SentenceDecoder:
    torch.manual_seed(1)
    return SentenceDecoder(config(), layers=2).eval()


@pytest.fixture
def rebuilder() -> EnhancedDecoder:
    torch.manual_seed(1)
    return EnhancedDecoder(config(), rate=0.5).eval()


def moved(module: torch.nn.Module, given: dict[str, Any], other: dict[str, Any]) -> Tensor:
    """bool [B, T]: the outputs that two inputs differ in."""
    with torch.no_grad():
        return ((module(**given) - module(**other)).abs() > 1e-6).any(-1)


def test_a_token_moves_only_what_stands_behind_it_in_its_document(writer: SentenceDecoder) -> None:
    given = inputs()
    for b, t in ((0, 0), (0, 1), (0, 5), (0, 8), (1, 4)):
        text = given["text_BT"].clone()
        text[b, t] = (text[b, t] + 1) % V
        found = moved(writer, given, given | {"text_BT": text})
        index = torch.arange(10)
        expected = torch.zeros(2, 10, dtype=torch.bool)
        expected[b] = (index > t) & (DOCUMENTS[b] == DOCUMENTS[b, t])
        assert torch.equal(found, expected), (b, t)


@pytest.mark.parametrize("kind", ["writer", "rebuilder"])
def test_a_vector_moves_all_of_its_document_and_no_other(kind: str, request: pytest.FixtureRequest) -> None:
    module = request.getfixturevalue(kind)
    given = inputs() | ({"position_B": torch.tensor([4, 5])} if kind == "rebuilder" else {})
    for b, d in ((0, 0), (0, 1), (0, 2), (1, 0)):
        vectors = given["vectors_BDH"].clone()
        vectors[b, d] += 1.0 + torch.arange(H)
        found = moved(module, given, given | {"vectors_BDH": vectors})
        expected = torch.zeros(2, 10, dtype=torch.bool)
        expected[b] = DOCUMENTS[b] == d
        assert torch.equal(found[:, :9], expected[:, :9])  # the last is padding


def test_packed_documents_are_written_as_if_each_stood_alone(writer: SentenceDecoder) -> None:
    given = inputs()
    together = writer(**given)
    alone = {
        "text_BT": given["text_BT"][:1, 4:7],
        "document_ids_BT": torch.zeros(1, 3, dtype=torch.long),
        "position_ids_BT": PLACES[:1, 4:7],
        "vectors_BDH": given["vectors_BDH"][:1, 1:2],
        "table_VE": given["table_VE"],
    }
    assert torch.allclose(writer(**alone), together[:1, 4:7], atol=1e-5)


def test_attention_over_one_vector_is_the_vector() -> None:
    """Why a projection stands where cross-attention would: whatever the query, the softmax over one score is 1."""
    query, vector = torch.randn(1, 1, 7, H), torch.randn(1, 1, 1, H)
    assert torch.allclose(F.scaled_dot_product_attention(query, vector, vector), vector.expand_as(query))


def test_a_rebuilt_token_never_sees_itself_and_sees_its_sample_of_the_others(rebuilder: EnhancedDecoder) -> None:
    """One layer, so what a token's output moves with is what its row of the mask shows."""
    given: dict[str, Any] = inputs() | {"position_B": torch.tensor([11, 12])}
    drawn = keyed_uniform(given["position_B"], 10, 10, purpose="decoder/visible") >= 0.5
    for b, u in ((0, 0), (0, 2), (0, 6), (1, 3), (1, 9)):
        text = given["text_BT"].clone()
        text[b, u] = (text[b, u] + 1) % V
        found = moved(rebuilder, given, given | {"text_BT": text})
        expected = torch.zeros(2, 10, dtype=torch.bool)
        expected[b] = drawn[b, :, u] & (DOCUMENTS[b] == DOCUMENTS[b, u]) & (torch.arange(10) != u)
        assert torch.equal(found, expected), (b, u)


def test_the_share_that_is_hidden(rebuilder: EnhancedDecoder) -> None:
    """400 × 30 × 29 pairs at 0.7: a standard error of 0.0008; each token has a sample of its own."""
    rebuilder.rate = 0.7
    seen = rebuilder._sample(torch.zeros(400, 30, dtype=torch.long), torch.arange(400))
    assert not seen.diagonal(dim1=1, dim2=2).any()
    assert abs(seen.sum().item() / (400 * 30 * 29) - 0.3) < 0.004
    assert not torch.equal(seen[:, 0, 2:], seen[:, 1, 2:])
    assert len({tuple(row.flatten().tolist()) for row in seen}) == 400


def test_with_everything_hidden_only_vector_and_place_are_left(rebuilder: EnhancedDecoder) -> None:
    rebuilder.rate = 1.0
    given: dict[str, Any] = inputs() | {"position_B": torch.tensor([1, 2])}
    other = given | {"text_BT": (given["text_BT"] + 1) % V}
    assert not moved(rebuilder, given, other).any()


def test_draws_do_not_depend_on_the_batch_or_its_padding(rebuilder: EnhancedDecoder) -> None:
    given: dict[str, Any] = inputs() | {"position_B": torch.tensor([7, 8])}
    narrow = {name: value[:1, :9] if name.endswith("BT") else value[:1] for name, value in given.items()}
    narrow["table_VE"] = given["table_VE"]
    with row_keyed_dropout(3, given["position_B"]):
        together = rebuilder(**given)
    with row_keyed_dropout(3, given["position_B"][:1]):
        part = rebuilder(**narrow)
    assert torch.allclose(together[:1, :9], part, atol=1e-6)


def test_embeddings_of_another_width_and_gradients() -> None:
    narrow = ElectraConfig(vocab_size=V, hidden_size=H, embedding_size=8, num_attention_heads=2)
    writer = SentenceDecoder(narrow)
    given = inputs() | {"table_VE": torch.randn(V, 8, requires_grad=True)}
    logits = writer.logits(writer(**given), given["table_VE"])
    assert logits.shape == (2, 10, V)
    logits.sum().backward()
    assert given["table_VE"].grad is not None
    assert all(p.grad is not None for p in writer.parameters())
    assert not any(p.shape == (V, 8) for p in writer.parameters())


def test_places_are_the_sinusoids_of_the_paper() -> None:
    found = places(torch.tensor([[0, 3]]), 4)
    assert torch.allclose(found[0, 0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    expected = [math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]
    assert torch.allclose(found[0, 1], torch.tensor(expected))
    assert places(torch.tensor([[5]]), 5).shape == (1, 1, 5)


def test_bad_options() -> None:
    with pytest.raises(UserError, match=r"objective\.layers"):
        SentenceDecoder(config(), layers=0)
