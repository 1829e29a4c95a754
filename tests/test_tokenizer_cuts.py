"""Cuts, harmless places and merges: the three parts of fast encoding, each against what it stands for."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from sslnlp.data.encoding import plain_tokenizer
from sslnlp.tokenizer.cuts import SEPARATOR, Cutter
from sslnlp.tokenizer.junctions import Junctions, merges_bytes
from sslnlp.tokenizer.merging import Merger
from sslnlp.tokenizer.words import byte_characters
from tests.many_tokenizers import LOCAL, byte_bpe, drawn, gpt2, greedy_bpe, local, texts


@functools.cache
def cutter(kind: str) -> Cutter:
    backend = plain_tokenizer(local(kind))
    made = Cutter.of(backend, json.loads(backend.to_str()))
    assert isinstance(made, Cutter)
    return made


def parts(kind: str, text: str) -> list[str]:
    mark = bytes([SEPARATOR])
    block = mark + text.encode() + mark
    cuts, _ = cutter(kind).cuts(np.frombuffer(block, np.uint8))
    at = np.flatnonzero(cuts).tolist()
    assert at[0] == 0
    assert not cuts[-1]
    found = [block[a:b].strip(mark).decode() for a, b in zip(at, [*at[1:], len(block)], strict=True)]
    assert "".join(found) == text
    return [part for part in found if part]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("GPT-2", "It's  3.5 ships\n\nat", ["It", "'s", " ", " 3", ".", "5", " ships", "\n", "\n", "at"]),
        ("GPT-2", "say 'hello' I'LL", ["say", " 'hello", "'", " I", "'LL"]),
        ("Llama 3", "It's 3 ships, (at sea)\n", ["It's 3", " ships, (at", " sea)\n"]),
        ("our wordpiece", "It's a 灯塔, at sea", ["It", "'", "s", " a", " ", "灯", "塔", ",", " at", " sea"]),
        ("our unigram", "It's 3 ships\tat", ["It", "'", "s", " 3", " ships", "\t", "at"]),
        ("Metaspace, first", " It's a  ship", [" It's", " a", " ", " ship"]),
    ],
)  # fmt: skip
def test_where_text_is_cut(kind: str, text: str, expected: list[str]) -> None:
    assert parts(kind, text) == expected


@pytest.mark.parametrize("kind", LOCAL)
def test_english_is_cut_into_words(kind: str) -> None:
    """A cutter that never cuts would give the right ids, at the price of `tokenizers`."""
    text = "The lighthouse keeper counted seventeen ships before the fog rolled in; none of them answered his lamp."
    assert len(parts(kind, text)) >= 16


def test_single_chunks_are_one_pre_token() -> None:
    for kind in ("GPT-2", "Llama 3", "Qwen, no normaliser"):
        pre_tokenizer = plain_tokenizer(local(kind)).pre_tokenizer
        found = sorted({part for text in texts(600, seed=4) for part in parts(kind, text)})
        block = b"".join(bytes([SEPARATOR]) + part.encode() for part in found) + bytes([SEPARATOR])
        lengths = np.array([len(part.encode()) for part in found])
        starts = np.cumsum(lengths + 1) - lengths
        single = cutter(kind).single(np.frombuffer(block, np.uint8), starts)
        assert single.sum() > 20
        for part in np.array(found, object)[single]:
            assert len(pre_tokenizer.pre_tokenize_str(part)) == 1, part


# --- junctions --------------------------------------------------------------------------------------------------------

CHARACTERS = ["é", "è", "中", "丮", "你", "，", "🙂", "🙃", "\u0301", "а"]


def reaches_across(token: bytes, left: bytes, right: bytes) -> bool:
    """Whether the token, laid anywhere over the two characters, holds bytes of both and contradicts neither."""
    pair = left + right
    for start in range(1 - len(token), len(left)):
        stop = start + len(token)
        inside = range(max(start, 0), min(stop, len(pair)))
        if stop > len(left) and all(token[i - start] == pair[i] for i in inside):
            return True
    return False


@st.composite
def pieces(draw: st.DrawFn) -> bytes:
    """Some bytes out of the middle of some characters."""
    raw = "".join(draw(st.lists(st.sampled_from([*CHARACTERS, "a", " "]), min_size=1, max_size=4))).encode()
    start = draw(st.integers(0, min(3, len(raw) - 1)))
    return raw[start : draw(st.integers(start + 1, len(raw)))]


@settings(max_examples=40, deadline=None)
@given(tokens=st.lists(pieces(), max_size=8))
def test_a_place_is_harmless_where_no_token_reaches_across(tokens: list[bytes]) -> None:
    pairs = [(a, b) for a in CHARACTERS for b in CHARACTERS]
    left, right = (np.array([ord(pair[side]) for pair in pairs]) for side in (0, 1))
    junctions = Junctions(tokens)
    expected = [not any(reaches_across(token, a.encode(), b.encode()) for token in tokens) for a, b in pairs]
    assert junctions.harmless(left, right).tolist() == expected
    assert junctions.harmless(left[::-1], right[::-1]).tolist() == expected[::-1]  # what it remembers is the same


# --- merging ----------------------------------------------------------------------------------------------------------


def test_models_that_do_more_than_merge_bytes_are_told_apart() -> None:
    plain = {"type": "BPE", "vocab": dict.fromkeys(byte_characters().values(), 0), "merges": []}
    assert merges_bytes(plain)
    assert not merges_bytes({**plain, "vocab": {"a": 0}})
    assert not merges_bytes({**plain, "type": "Unigram"})
    for option in ({"dropout": 0.1}, {"ignore_merges": True}, {"continuing_subword_prefix": "##"}):
        assert not merges_bytes({**plain, **option})
    assert not merges_bytes({**plain, "end_of_word_suffix": "</w>"})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), few=st.booleans())
def test_words_are_merged_as_by_tokenizers(seed: int, few: bool) -> None:
    rng = np.random.default_rng(seed)
    many = ["a", "th", "ship", " ", "é", "你好", "🙂", "\x00", "'s", "1"]
    alphabet = ["a", "s", "e", "é", "中", " "] if few else many
    words = [drawn(alphabet, rng) for _ in range(600)]
    raw = [word.encode() for word in words]
    lengths = np.array([len(word) for word in raw])
    ids, counts = merger()(np.frombuffer(b"".join(raw), np.uint8), lengths)
    expected = [found.ids for found in whole_words().encode_batch(words)]
    assert [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])] == expected


@functools.cache
def whole_words():
    return byte_bpe(gpt2(use_regex=False)).backend_tokenizer


@functools.cache
def merger() -> Merger:
    return Merger(greedy_bpe())


def test_without_merges_bytes_stay_bytes() -> None:
    vocabulary = {character: byte for byte, character in byte_characters().items()}
    bare = Merger({"vocab": vocabulary, "merges": []})
    ids, counts = bare(np.frombuffer("é!".encode(), np.uint8), np.array([2, 1]))
    assert ids.tolist() == [0xC3, 0xA9, ord("!")]
    assert counts.tolist() == [2, 1]


def test_merges_may_be_spelt_as_one_string() -> None:
    model = greedy_bpe()
    old = {**model, "merges": [" ".join(pair) for pair in model["merges"]]}
    word = np.frombuffer(" ship's 你好".encode(), np.uint8)
    lengths = np.array([len(word)])
    assert Merger(old)(word, lengths)[0].tolist() == merger()(word, lengths)[0].tolist()
    assert models.BPE(**model).tokenize("a")
