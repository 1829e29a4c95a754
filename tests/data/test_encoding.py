"""Fast encoding gives the ids of `tokenizers`, whatever text and tokenizer, through resets and block borders."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from sslnlp.data import chunks, encoding, open_source
from sslnlp.data.encoding import Encoder, plain_tokenizer, split_long
from sslnlp.errors import UserError
from sslnlp.tokenizer import contract, cuts
from tests.many_tokenizers import ADDED, FRAGMENTS, LOCAL, OTHER, byte_bpe, gpt2, local, wrapped
from tests.many_tokenizers import texts as random_texts

TEXTS = st.lists(
    st.one_of(
        st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join),
        st.text(st.sampled_from("ab' \n!1é中，٣"), max_size=40),
        st.text(max_size=40),
    ),
    min_size=1,
    max_size=8,
)


@cache
def encoder(kind: str) -> Encoder:
    """One for all examples: what it remembers of the texts before is tried too."""
    made = Encoder(local(kind))
    assert made.fast
    return made


@contextmanager
def tiny_tables() -> Iterator[None]:
    """Blocks, groups, batches and tables so small that every text crosses their borders; all that can be is merged."""
    sizes = {"BLOCK_BYTES": 16, "GROUP_BLOCKS": 2, "_FEW": 1, "_WORDS": 3}
    tables = {"MAX_CHUNKS": 20, "LONGEST": 5, "FRONT_BITS": (3, 2)}
    with mock.patch.multiple(encoding, **sizes), mock.patch.multiple(chunks, **tables):
        yield


@cache
def small(kind: str) -> Encoder:
    with tiny_tables():
        made = Encoder(local(kind))
    assert made.fast
    return made


def by_tokenizers(tokenizer, texts: list[str]) -> list[list[int]]:
    return [found.ids for found in plain_tokenizer(tokenizer).encode_batch(texts, add_special_tokens=False)]


def by_us(made: Encoder, texts: list[str]) -> list[list[int]]:
    ids, lengths, num_bytes = made.encode(texts)
    assert num_bytes.tolist() == [len(text.encode()) for text in texts]
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("number", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", LOCAL)
def test_ids_are_those_of_tokenizers(kind, number):
    texts = random_texts(number, seed=2)
    both = zip(texts, by_us(encoder(kind), texts), by_tokenizers(local(kind), texts), strict=True)
    wrong = [text for text, ours, theirs in both if ours != theirs]
    assert not wrong, min(wrong, key=len)


@pytest.mark.parametrize("kind", LOCAL)
@settings(max_examples=12, deadline=None)
@given(texts=TEXTS)
def test_ids_are_the_same_across_blocks_resets_and_merging(kind, texts):
    with tiny_tables():
        assert by_us(small(kind), texts) == by_tokenizers(local(kind), texts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOCAL)
@settings(max_examples=200, deadline=None)
@given(texts=TEXTS)
def test_ids_are_the_same_across_blocks_resets_and_merging_of_many_texts(kind, texts):
    with tiny_tables():
        assert by_us(small(kind), texts) == by_tokenizers(local(kind), texts)


@pytest.mark.parametrize("kind", OTHER)
def test_other_tokenizers_encode_for_themselves_and_it_is_said(kind, caplog):
    make, why = OTHER[kind]
    with caplog.at_level(logging.INFO, "sslnlp"):
        made = Encoder(make())
    assert not made.fast
    assert caplog.messages
    assert f"this tokenizer's ids ({why}".replace("\\", "") in caplog.text
    texts = ["", *random_texts(40, seed=3)]
    assert by_us(made, texts) == by_tokenizers(make(), texts)


def test_a_rule_that_gives_other_ids_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(cuts, "_known", lambda facts: (cuts._before_spaces, False))
    tokenizer = byte_bpe(gpt2(use_regex=False))
    made = Encoder(tokenizer)
    assert not made.fast
    assert "gives other ids" in caplog.text
    assert by_us(made, ["the ships"]) == by_tokenizers(tokenizer, ["the ships"])


@pytest.mark.parametrize("kind", ["our bpe", "our unigram", "MiniLM", "GPT-2, added tokens"])
@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ["\x00"], ["a\x00b", "", "\x00" * 40, " ", "'", "[SEP]"]])
def test_texts_of_next_to_nothing(kind, texts):
    ids, lengths, num_bytes = encoder(kind).encode(texts)
    assert ids.tolist() == list(chain(*by_tokenizers(local(kind), texts)))
    assert len(lengths) == len(num_bytes) == len(texts)


@pytest.mark.parametrize("kind", ["our bpe", "our wordpiece", "our unigram", "Llama 3"])
def test_a_huge_word_is_tokenised_in_pieces(kind):
    word = " " + "éships" * 20_000
    pieces = list(split_long(word))
    assert len(pieces) > 1
    inner = encoder(kind)._inner  # as tokenised behind other text
    middle = list(chain(*(inner.encode(piece, add_special_tokens=False).ids for piece in pieces)))
    before, after = by_tokenizers(local(kind), ["The lamp"])[0], inner.encode(" was lit").ids
    assert by_us(encoder(kind), ["The lamp" + word + " was lit", "ships"])[0] == before + middle + after


@pytest.mark.parametrize("kind", ["our bpe", "MiniLM"])
def test_a_text_longer_than_a_block_without_a_place_to_cut(kind, monkeypatch):
    monkeypatch.setattr(encoding, "BLOCK_BYTES", 64)
    texts = ["a" * 63, "ships" * 600, "\u0301" * 300, "é" * 100 + " the ships", " " * 500 + "x"]
    assert by_us(encoder(kind), texts) == by_tokenizers(local(kind), texts)


def test_a_text_with_an_added_token_is_one_chunk_however_many_blocks_it_spans():
    with tiny_tables():
        texts = ["ships zz ships" * 30, "the ship", "zz", f"a {' '.join(ADDED)} b"]
        assert by_us(small("GPT-2, added tokens"), texts) == by_tokenizers(local("GPT-2, added tokens"), texts)


def test_a_vocabulary_without_an_unknown_token_encodes_what_it_can_spell():
    """The sample that fast encoding is tried on has characters of its own, which such a vocabulary lacks."""
    backend = Tokenizer(models.Unigram([("▁", -1.0), ("a", -1.0), ("▁ab", -1.5), ("b", -2.0)]))
    tokenizer = wrapped(backend, pre_tokenizers.Metaspace(), None)
    encoder = Encoder(tokenizer)
    assert not encoder.fast
    assert encoder.encode(["ab ba", "a"]).ids.tolist() == [2, 0, 3, 1, 0, 1]
    with pytest.raises(UserError, match="has no unknown token"):
        encoder.encode(["ab", "abc"])
    with pytest.raises(UserError, match="has no unknown token"):
        contract(tokenizer, ["ab", "abc"])


@pytest.mark.parametrize("kind", ["our bpe", "Llama 3, ignoring merges"])
def test_half_a_surrogate_pair_is_refused(kind):
    with pytest.raises(UserError, match=r"half a surrogate pair \('\\ud83d' at character 5\)"):
        encoder(kind).encode(["fine", "ships\ud83d"])


@pytest.mark.parametrize("extension", ["jsonl", "json"])
def test_half_a_surrogate_pair_in_a_file_is_named_by_file_and_row(tmp_path, extension):
    rows = [{"text": text, "other": "\ud800"} for text in ("plain", "灯塔", "ships\ud83d")]
    (first := tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    (second := tmp_path / f"b.{extension}").write_text(
        json.dumps(rows) if extension == "json" else "\n".join(map(json.dumps, rows))
    )
    source = open_source([str(first), str(second)])
    with pytest.raises(
        UserError, match=rf"b\.{extension} row 3 holds half a surrogate pair \('\\ud83d' at character 5"
    ):
        list(source.documents())


def test_special_tokens_in_the_text_are_ordinary_text():
    tokenizer = byte_bpe(gpt2())
    ids, _, _ = Encoder(tokenizer).encode(["a [MASK] b</s>[SEP]"])
    assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
    assert set(tokenizer.convert_tokens_to_ids(["[MASK]", "[SEP]", "</s>"])) & set(tokenizer.added_tokens_decoder)
