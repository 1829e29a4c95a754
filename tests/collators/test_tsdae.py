"""Laws of deletion: counts a document, order kept, frames kept, whole words, the target; and rows that are unlike."""

from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.collators.tokens import token_block
from sslnlp.collators.tsdae import TSDAECollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import drawable_ids, special_mask, word_boundaries
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, packed_row, tiny

IGNORED = -100
TEXTS = [*ENGLISH, *CHINESE, "", "a", "灯", "🙂🙂 lamps 🚢, ships 👩‍👩‍👧 and 灯塔!", " ".join(ENGLISH)]


def row_of(texts, tokenizer, position=0, padding=0):
    """Whole framed documents in one row."""
    pieces = [tokenizer(text)["input_ids"] for text in texts]
    return packed_row(pieces, tokenizer, padding=padding, position=position)


def documents_of(ids, document_ids):
    """Document number -> its ids, in plain Python."""
    return {
        number: [int(i) for i, _ in run]
        for number, run in groupby(zip(ids.tolist(), document_ids.tolist(), strict=True), key=lambda pair: pair[1])
        if number >= 0
    }


def read(batch, b):
    """Source and target documents of row b."""
    source = documents_of(batch["input_ids"][b], batch["document_ids"][b])
    return source, documents_of(batch["labels"][b], batch["decoder_document_ids"][b])


def is_subsequence(short, long):
    rest = iter(long)
    return all(token in rest for token in short)


texts = st.lists(st.sampled_from(TEXTS) | st.text(max_size=40), min_size=1, max_size=4)


@given(
    rows=st.lists(texts, min_size=1, max_size=3),
    kind=st.sampled_from(KINDS),
    rate=st.floats(0, 0.95),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 2**45),
    unit=st.sampled_from(["token", "word"]),
)
@settings(max_examples=120, deadline=None)
def test_laws_of_every_document(rows, kind, rate, seed, start, unit):
    tokenizer = tiny(kind)
    special = special_mask(tokenizer)
    made = [row_of(texts, tokenizer, start + i, padding=i) for i, texts in enumerate(rows)]
    batch = TSDAECollator(tokenizer=tokenizer, seed=seed, rate=rate, unit=unit)(made)
    for b, row in enumerate(made):
        source, target = read(batch, b)
        originals = documents_of(row["input_ids"], row["document_ids"])
        assert source.keys() == target.keys() == originals.keys()
        for number, original in originals.items():
            kept = source[number]
            # The target is the whole document behind its opening token, and what is left keeps its order and its frame.
            assert target[number] == original[1:]
            assert is_subsequence(kept, original)
            assert [i for i in kept if special[i]] == [i for i in original if special[i]]
            before, after = (sum(not special[i] for i in ids) for ids in (original, kept))
            if unit == "token":
                assert after == max(before - round(rate * before), min(before, 1))
            assert (after > 0) == (before > 0)
    # Nothing but the documents, and places from 0 in each.
    assert torch.equal(batch["attention_mask"], batch["document_ids"] >= 0)
    assert torch.equal(batch["labels"] == IGNORED, batch["decoder_document_ids"] < 0)
    for places, documents in (("position_ids", "document_ids"), ("decoder_position_ids", "decoder_document_ids")):
        for place_row, document_row in zip(batch[places].tolist(), batch[documents].tolist(), strict=True):
            for _, run in groupby(zip(place_row, document_row, strict=True), key=lambda pair: pair[1]):
                found = [place for place, _ in run]
                assert found == list(range(len(found)))


@pytest.mark.parametrize("kind", KINDS)
def test_words_go_whole_and_meet_the_count(kind):
    """A word is all there or all gone; the count is met to within half of the longest word."""
    tokenizer = tiny(kind)
    row = row_of([" ".join(ENGLISH) + " unlamped fogships harbourer " + "".join(CHINESE)], tokenizer)
    ids = row["input_ids"]
    text = ~special_mask(tokenizer)[ids]
    word = np.cumsum(word_boundaries(tokenizer).starts(ids[None])[0])[text]
    collator = TSDAECollator(tokenizer=tokenizer, unit="word")
    deleted = collator._deleted(token_block([{**row, "position": p} for p in range(60)], tokenizer), np.arange(60))
    assert not deleted[:, ~text].any()
    longest = np.bincount(word).max()
    assert longest > 1
    for gone in deleted[:, text]:
        assert all(len(set(gone[word == w])) == 1 for w in np.unique(word))
        assert abs(gone.sum() - round(0.6 * len(word))) <= longest / 2


def test_every_token_goes_equally_often():
    """No place is favoured: 0.6 in 600 draws has a standard error of 0.02."""
    tokenizer = tiny()
    n = 40
    text = drawable_ids(tokenizer)[:n]
    ids = np.array([tokenizer.cls_token_id, *text, tokenizer.sep_token_id])
    row = {"input_ids": ids, "document_ids": np.zeros(n + 2, np.int32)}
    batch = TSDAECollator(tokenizer=tokenizer)([{**row, "position": p} for p in range(600)])
    gone = 1 - torch.stack([(batch["input_ids"] == i).any(1).double().mean() for i in text.tolist()])
    assert abs(gone.mean().item() - 0.6) < 1e-9
    assert gone.min() > 0.6 - 5 * 0.02
    assert gone.max() < 0.6 + 5 * 0.02


@pytest.mark.parametrize("unit", ["token", "word"])
def test_neighbours_and_padding_do_not_move_a_row_s_draws(unit):
    tokenizer = tiny()
    rows = [row_of([text, ENGLISH[i % 5]], tokenizer, 90 + i, padding=3 * i) for i, text in enumerate(TEXTS)]
    collator = TSDAECollator(tokenizer=tokenizer, unit=unit, seed=5)
    together = collator(rows)
    for size in (1, 3):
        for i in range(0, len(rows), size):
            part = collator(rows[i : i + size])
            for b in range(len(part["position"])):
                assert read(part, b) == read(together, i + b)
    assert read(TSDAECollator(tokenizer=tokenizer, unit=unit, seed=6)(rows), 0)[0] != read(together, 0)[0]
    held_out = collator.for_evaluation(5)
    assert torch.equal(held_out(rows)["input_ids"], together["input_ids"])


def test_a_long_document_and_rows_of_nothing_but_frames():
    tokenizer = tiny()
    n = 100_000
    long = {"input_ids": np.resize(drawable_ids(tokenizer), n), "document_ids": np.zeros(n, np.int32), "position": 3}
    batch = TSDAECollator(tokenizer=tokenizer)([long])
    assert int(batch["attention_mask"].sum()) == n - round(0.6 * n)
    assert int((batch["labels"] != IGNORED).sum()) == n  # nothing opens it that could be left out
    empty = TSDAECollator(tokenizer=tokenizer)([row_of(["", ""], tokenizer)])
    frame = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert read(empty, 0) == ({0: frame, 1: frame}, {0: frame[1:], 1: frame[1:]})
    padding = {"input_ids": np.zeros(4, int), "document_ids": np.full(4, -1, np.int32), "position": 0}
    assert read(TSDAECollator(tokenizer=tokenizer, unit="word")([padding]), 0) == ({}, {})


def test_drop_in_makes_what_models_take_and_never_repeats():
    tokenizer = tiny()
    rows = [{"input_ids": tokenizer(" ".join(ENGLISH))["input_ids"]}] * 6
    collator = TSDAECollator(tokenizer=tokenizer)
    batches = [collator(rows), collator(rows)]
    assert set(batches[0]) == {"input_ids", "attention_mask", "labels"}
    assert len({tuple(row.tolist()) for batch in batches for row in batch["input_ids"]}) == 12


@pytest.mark.parametrize(
    ("options", "words"),
    [({"rate": -0.1}, "collator.rate"), ({"rate": 1.0}, "collator.rate"), ({"unit": "words"}, "'word'")],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        TSDAECollator(tokenizer=tiny(), **options)
