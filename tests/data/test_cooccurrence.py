"""Counts of neighbours against counting by hand."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from sslnlp.data import TokenStore, cooccurrence
from sslnlp.data.cooccurrence import cooccurrences

MakeStore = Callable[[Sequence[int]], TokenStore]


def by_hand(documents: Sequence[Sequence[int]], window: int) -> np.ndarray:
    counts = np.zeros((1000, 1000), np.float32)
    for ids in documents:
        for i, x in enumerate(ids):
            for distance, y in enumerate(ids[i + 1 : i + 1 + window], 1):
                counts[x, y] += 1 / distance
    return counts


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("run", [7, 1 << 18])
def test_pairs_are_counted_inside_their_document(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, window: int, run: int
) -> None:
    store = make_store([5, 0, 1, 40, 2, 0, 9, 0])
    monkeypatch.setattr(cooccurrence, "_RUN", run)
    pieces = [store.tokens(i) for i in range(len(store))]
    if run == 7:  # what is read at once breaks a document, and pairs across that place are not seen
        flat, owner = np.concatenate(pieces), np.repeat(np.arange(len(store)), store.lengths)
        edges = [i * len(flat) // -(-len(flat) // 7) for i in range(-(-len(flat) // 7) + 1)]
        pieces = [flat[a:b][owner[a:b] == d] for a, b in pairwise(edges) for d in set(owner[a:b])]
    counts = sum(cooccurrences(store, 1000, window=window))
    np.testing.assert_allclose(counts.toarray(), by_hand(pieces, window), rtol=1e-6)


def test_of_a_long_corpus_runs_are_read_from_its_beginning_to_its_end(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store([1000])
    monkeypatch.setattr(cooccurrence, "_RUN", 10)
    read = list(cooccurrence._runs(store.num_tokens, 50))
    assert read == [(0, 10), (200, 210), (400, 410), (600, 610), (800, 810)]
    assert sum(cooccurrences(store, 1000, window=1, limit=50)).sum() == 5 * 9


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1]], ids=["one token", "documents of one"])
def test_text_without_neighbours_has_no_counts(make_store: MakeStore, lengths: list[int]) -> None:
    assert all(half.nnz == 0 for half in cooccurrences(make_store(lengths), 1000, window=4))


def test_what_stands_around_a_document_is_counted_with_it(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store([3, 0, 1, 2])
    framed = [[1, 2, *store.tokens(i), 3] for i in range(len(store)) if len(store.tokens(i))]
    counts = sum(cooccurrences(store, 1000, window=2, prefix=(1, 2), suffix=(3,)))
    np.testing.assert_allclose(counts.toarray(), by_hand(framed, 2), rtol=1e-6)
    monkeypatch.setattr(cooccurrence, "_RUN", 2)  # reads [0, 2), [2, 4), [4, 6)
    flat = np.concatenate([store.tokens(i) for i in range(len(store))])
    cut = [[1, 2, flat[0], flat[1]], [flat[2], 3], [1, 2, flat[3], 3], [1, 2, flat[4], flat[5], 3]]
    counts = sum(cooccurrences(store, 1000, window=2, prefix=(1, 2), suffix=(3,)))
    np.testing.assert_allclose(counts.toarray(), by_hand(cut, 2), rtol=1e-6)


@pytest.mark.parametrize("lengths", [[5] * 400, [2000]], ids=["documents", "one document"])
def test_each_half_has_whole_documents_or_pieces_of_a_long_one(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, lengths: list[int]
) -> None:
    monkeypatch.setattr(cooccurrence, "_PIECE", 5)
    store = make_store(lengths)
    first, second = cooccurrences(store, 1000, window=4)
    pieces = np.concatenate([store.tokens(i) for i in range(len(store))]).reshape(400, 5)
    of_first = [first[piece[:-1], piece[1:]].sum() > second[piece[:-1], piece[1:]].sum() for piece in pieces]
    # Drawn: 200 of either, and neither the first 200 nor every other one.
    assert 190 <= sum(of_first) <= 210
    assert 60 <= sum(of_first[:200]) <= 140
    assert 60 <= sum(of_first[::2]) <= 140
