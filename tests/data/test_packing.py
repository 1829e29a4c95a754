from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.data import PackedRows, PaddedRows, packing
from sslnlp.data.packing import best_fit, cut
from sslnlp.errors import UserError

S = 16
LENGTHS = [0, 1, S, S - 1, S - 2, S - 3, 100_000, 0, *np.random.default_rng(0).integers(0, 60, 500).tolist()]
FRAMINGS = [((1,), (2,), True), ((1,), (2,), False), ((1,), (2, 3, 4), False), ((), (), True)]


@pytest.mark.parametrize(("prefix", "suffix", "every"), FRAMINGS)
@pytest.mark.parametrize("kind", [PackedRows, PaddedRows])
def test_nothing_is_dropped_and_every_piece_is_framed(make_store, kind, prefix, suffix, every):
    store = make_store(LENGTHS)
    rows = kind(store, S, prefix, suffix, 0, suffix_every_piece=every)
    text, ends, pieces = [], 0, 0
    for row in rows.rows(range(len(rows))):
        ids, documents = row["input_ids"], row["document_ids"]
        assert len(ids) == len(documents) <= S
        assert (ids[documents < 0] == 0).all()
        for number in range(documents.max() + 1):
            piece = ids[documents == number]
            content = piece[piece >= 10]
            assert len(content) > 0
            assert tuple(piece[: len(prefix)]) == prefix
            tail = tuple(piece[len(prefix) + len(content) :])
            assert tail == suffix or (not every and tail == ())
            ends += tail == suffix
            pieces += 1
            text.append(content)
    stored = np.concatenate([store.tokens(i) for i in range(len(store))])
    assert np.array_equal(np.bincount(np.concatenate(text), minlength=1000), np.bincount(stored, minlength=1000))
    assert ends == (pieces if every else np.count_nonzero(LENGTHS))


def test_packed_rows_are_nearly_full_and_all_of_one_length(make_store):
    rows = PackedRows(make_store(LENGTHS), S, (1,), (2,), 0)
    block = rows.rows(range(len(rows)))
    assert {row["input_ids"].shape for row in block} == {(S,)}
    used = np.mean([(row["document_ids"] >= 0).mean() for row in block])
    assert used == pytest.approx(rows.utilisation)
    assert used > 0.98


@pytest.mark.parametrize("every", [True, False])
def test_a_reserve_leaves_room_beside_every_piece(make_store, every):
    rows = PackedRows(make_store(LENGTHS), S, (1,), (2,), 0, suffix_every_piece=every, reserve=3)
    content = 0
    for row in rows.rows(range(len(rows))):
        documents = row["document_ids"]
        assert (documents >= 0).sum() + 3 * (documents.max() + 1) <= S
        content += (row["input_ids"] >= 10).sum()
    assert content == sum(LENGTHS)
    with pytest.raises(UserError, match="no room"):
        PackedRows(make_store(LENGTHS), 5, (1,), (2,), 0, reserve=3)


def test_padded_rows_tell_their_lengths(make_store):
    rows = PaddedRows(make_store(LENGTHS), S, (1,), (2,))
    assert [len(row["input_ids"]) for row in rows.rows(range(len(rows)))] == rows.lengths.tolist()


def test_a_piece_keeps_the_order_of_its_document(make_store):
    store = make_store([40])
    rows = PaddedRows(store, S, (1,), (2,))
    joined = np.concatenate([rows[i]["input_ids"][1:-1] for i in range(len(rows))])
    assert np.array_equal(joined, store.tokens(0))


def test_rows_survive_pickling_without_their_data(make_store):
    rows = PackedRows(make_store(LENGTHS), S, (1,), (2,), 0)
    raw = pickle.dumps(rows)
    assert len(raw) < 2000
    assert np.array_equal(pickle.loads(raw)[7]["input_ids"], rows[7]["input_ids"])


def test_what_killed_plans_leave_behind_does_not_pile_up(make_store):
    store = make_store([5, 9, 30])
    for _ in range(2):
        if not (pid := os.fork()):
            try:
                packing.json.dumps = lambda facts: os._exit(9)
                PackedRows(store, S, (1,), (2,))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len([path for path in store.path.iterdir() if path.is_dir()]) == 1
    rows = PackedRows(store, S, (1,), (2,))
    assert [path for path in store.path.iterdir() if path.is_dir()] == [rows.path]


def test_too_short_a_row_is_refused(make_store):
    with pytest.raises(UserError, match="seq_length=2"):
        PackedRows(make_store([5]), 2, (1,), (2,), 0)


@given(st.lists(st.integers(1, 50), max_size=200))
@settings(max_examples=50, deadline=None)
def test_best_fit_overfills_no_bin_and_wastes_less_than_half(sizes):
    bins, n = best_fit(np.array(sizes, np.int64), 50)
    loads = np.bincount(bins, weights=sizes, minlength=n) if sizes else np.zeros(0)
    assert (loads <= 50).all()
    assert (loads > 0).all()
    assert (loads <= 25).sum() <= 1  # two half-empty bins would have been one


@given(st.lists(st.integers(0, 70), min_size=1, max_size=20), st.integers(0, 2), st.integers(0, 3), st.booleans())
@settings(max_examples=100, deadline=None)
def test_pieces_cover_every_token_once_and_fit(lengths, prefix, suffix, every):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts, framed, ends = cut(offsets, 8, prefix, suffix, every)
    content = framed - prefix - (suffix if every else suffix * ends)
    assert (framed <= 8).all()
    assert (content > 0).all()
    covered = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, content, strict=True)] or [np.zeros(0)])
    assert np.array_equal(covered, np.arange(sum(lengths)))
    assert ends.sum() == np.count_nonzero(lengths)
