"""How often each term stands in each document: all that BM25 needs of a text, written once for a segment.

Kept by term (for each one the rows that hold it, ascending), so segments join and deleted rows drop out without the
texts being read again. Legend: V terms, P (term, document) pairs, N documents.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslnlp.arrays import Bools, Ints
from sslnlp.search.analysis import Analyzer

_BLOCK = 16384  # documents counted at once: some 20 MB at 100 words each
_CHUNK = 1 << 22  # pairs in memory at once while segments are joined

Integers = NDArray[np.integer[Any]]


class Postings(NamedTuple):
    """`rows` and `counts` [P] of term v stand from starts[v] to starts[v + 1]; `lengths` [N] in terms."""

    terms: list[str]
    starts: Integers
    rows: Integers
    counts: Integers
    lengths: Integers

    def spans(self) -> Iterator[tuple[int, int]]:
        """Spans [first, last) of terms with some four million pairs each, but always whole terms."""
        first = 0
        while first < len(self.terms):
            last = int(np.searchsorted(self.starts, self.starts[first] + _CHUNK, side="right")) - 1
            yield first, (last := max(first + 1, last))
            first = last

    def save(self, folder: Path) -> None:
        """Write into the folder, which is made."""
        folder.mkdir(exist_ok=True)
        (folder / "terms.json").write_text(json.dumps(self.terms), encoding="utf-8")
        for name, values in zip(self._fields[1:], self[1:], strict=True):
            np.save(folder / f"{name}.npy", values)

    @classmethod
    def load(cls, folder: Path) -> Postings:
        """What `save` wrote, memory-mapped."""
        terms: list[str] = json.loads((folder / "terms.json").read_text(encoding="utf-8"))
        return cls(terms, *(np.load(folder / f"{name}.npy", mmap_mode="r") for name in cls._fields[1:]))


def write_postings(
    folder: Path, texts: Iterable[str], analyzer: Analyzer, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Count the terms of `texts` into `folder`, 16,384 texts at a time; `progress` hears each block's size.

    Memory holds the vocabulary, one block, and at the end the finished rows and counts (5 bytes a pair as a rule): the
    blocks wait on disk until it is known how many documents hold each term.
    """
    vocabulary: dict[str, int] = {}
    lengths, texts = array("i"), iter(texts)
    folder.mkdir(exist_ok=True)
    with open(folder / "blocks.tmp", "w+b") as spilled:
        while block := list(islice(texts, _BLOCK)):
            for values in _count(block, analyzer, vocabulary, lengths):
                np.save(spilled, values)
            progress(len(block))
        end = spilled.tell()
        holding_V, largest = np.zeros(len(vocabulary), np.int64), 0
        for terms_P, _, counts_P in _spilled(spilled, end):
            holding_V += np.bincount(terms_P, minlength=len(vocabulary))
            largest = max(largest, int(counts_P.max(initial=0)))
        target = _Placed(holding_V, np.min_scalar_type(largest))
        identity = np.arange(len(vocabulary))
        for terms_P, rows_P, counts_P in _spilled(spilled, end):
            target.place(identity, terms_P, rows_P, counts_P)
    (folder / "blocks.tmp").unlink()
    target.postings(list(vocabulary), np.frombuffer(lengths, np.int32)).save(folder)


def join(parts: Sequence[Postings], live: Sequence[Bools]) -> Postings:
    """The postings of several segments as one, over their `live` rows only, renumbered without gaps from 0."""
    if len(parts) == 1 and live[0].all():
        return parts[0]
    vocabulary: dict[str, int] = {}
    places = [
        np.fromiter((vocabulary.setdefault(term, len(vocabulary)) for term in part.terms), np.int64, len(part.terms))
        for part in parts
    ]
    holding_V = np.zeros(len(vocabulary), np.int64)
    for part, alive_N, place_V in zip(parts, live, places, strict=True):
        for terms_P, _, _ in _chunks(part, alive_N):
            holding_V += np.bincount(place_V[terms_P], minlength=len(vocabulary))
    target = _Placed(holding_V, np.result_type(*(part.counts.dtype for part in parts)))
    before = 0
    for part, alive_N, place_V in zip(parts, live, places, strict=True):
        renumbered_N = np.cumsum(alive_N) - 1 + before
        for terms_P, rows_P, counts_P in _chunks(part, alive_N):
            target.place(place_V, terms_P, renumbered_N[rows_P], counts_P)
        before += int(alive_N.sum())
    lengths_N = np.concatenate([part.lengths[alive_N] for part, alive_N in zip(parts, live, strict=True)])
    return target.postings(list(vocabulary), lengths_N)


class _Placed:
    """Rows and counts being sorted by term: each piece goes to where the former ones of its term ended."""

    def __init__(self, holding_V: Ints, counts: np.dtype[Any]) -> None:
        self._holding_V = holding_V
        self._next_V = np.cumsum(holding_V) - holding_V
        self._rows_P = np.empty(int(holding_V.sum()), np.int32)
        self._counts_P = np.empty(len(self._rows_P), counts)

    def place(self, place_V: Integers, terms_P: Integers, rows_P: Integers, counts_P: Integers) -> None:
        """Add pairs sorted by `terms_P`, which are term place_V[term] here."""
        firsts = np.flatnonzero(np.diff(terms_P, prepend=-1))
        held, terms = np.diff(firsts, append=len(terms_P)), place_V[terms_P[firsts]]
        at_P = np.repeat(self._next_V[terms] - firsts, held) + np.arange(len(terms_P))
        self._rows_P[at_P] = rows_P
        self._counts_P[at_P] = counts_P
        self._next_V[terms] += held

    def postings(self, terms: list[str], lengths_N: Integers) -> Postings:
        kept_V = self._holding_V > 0  # a term whose last document was deleted goes too
        starts_V = np.concatenate([[0], np.cumsum(self._holding_V[kept_V])])
        kept = [term for term, keep in zip(terms, kept_V.tolist(), strict=True) if keep]
        return Postings(kept, starts_V, self._rows_P, self._counts_P, lengths_N)


def _count(block: list[str], analyzer: Analyzer, vocabulary: dict[str, int], lengths: array[int]) -> list[Integers]:
    """The block's (term, row, count), sorted by term, then row; new terms and the lengths are appended."""
    first, ids = len(lengths), array("i")
    for text in block:
        terms = analyzer.terms(text)
        # Ids in first-seen order: a set's order would change from run to run.
        ids.extend([vocabulary.setdefault(term, len(vocabulary)) for term in terms])
        lengths.append(len(terms))
    rows = np.repeat(np.arange(first, len(lengths)), lengths[first:])
    pairs = (np.frombuffer(ids, np.int32).astype(np.int64) << 32) | rows if len(ids) else rows
    pairs.sort()
    firsts = np.flatnonzero(np.diff(pairs, prepend=-1))
    pairs, counts = pairs[firsts], np.diff(firsts, append=len(pairs))
    return [(pairs >> 32).astype(np.int32), (pairs & 0xFFFFFFFF).astype(np.int32), counts.astype(np.int32)]


def _spilled(file: BinaryIO, end: int) -> Iterator[tuple[Integers, Integers, Integers]]:
    file.seek(0)
    while file.tell() < end:
        yield np.load(file), np.load(file), np.load(file)


def _chunks(part: Postings, alive_N: Bools) -> Iterator[tuple[Integers, Integers, Integers]]:
    """(terms, rows, counts) of the live rows, in order, some four million pairs (but always whole terms) at a time."""
    for first, last in part.spans():
        start, end = part.starts[first], part.starts[last]
        terms_P = np.repeat(np.arange(first, last), np.diff(part.starts[first : last + 1]))
        kept_P = alive_N[part.rows[start:end]]
        yield terms_P[kept_P], part.rows[start:end][kept_P], part.counts[start:end][kept_P]
