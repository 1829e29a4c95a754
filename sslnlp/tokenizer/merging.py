"""Byte-level BPE of many words at once.

All words lie in one flat array of symbols. A round finds the best pair of each word, merges it, and looks up the two
pairs that are new. The result is that of merging one pair at a time, the lowest rank
first and the leftmost of equals (Sennrich et al., 2016, as `tokenizers` does it).
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Bools, Bytes, Ints
from sslnlp.rng import GOLDEN
from sslnlp.tokenizer.words import byte_characters

Symbols = npt.NDArray[np.int32]

_NONE = 2**31 - 1  # the rank of a pair that does not merge


class Merger:
    """Merges of a `tokenizer.json` model for which `junctions.merges_bytes` is true."""

    def __init__(self, model: dict[str, Any]) -> None:
        vocabulary: dict[str, int] = model["vocab"]
        spelling = byte_characters()
        self.byte_ids = np.array([vocabulary[spelling[byte]] for byte in range(256)], np.int32)
        # No tuples: thousands of objects make Python's collector walk through everything that is loaded.
        sides = [part for merge in model["merges"] for part in (merge.split(" ") if isinstance(merge, str) else merge)]
        left, right = sides[0::2], sides[1::2]
        self._merged = _looked_up(vocabulary, map(add, left, right))
        keys = _looked_up(vocabulary, left).astype(np.uint64) << np.uint64(32) | _looked_up(vocabulary, right).view(
            np.uint32
        )
        self._bits = max(8, (4 * len(keys)).bit_length())
        self._build(keys)
        both = np.arange(1 << 16)
        self._byte_ranks = self._rank(self.byte_ids[both >> 8], self.byte_ids[both & 0xFF]).astype(np.int32)

    def _build(self, keys: npt.NDArray[np.uint64]) -> None:
        """An open hash table: a pair stands at its place or at one of the `_probes` places after it."""
        size = 1 << self._bits
        self._keys = np.full(size + 256, 2**64 - 1, np.uint64)
        self._ranks = np.full(size + 256, _NONE, np.int32)
        self._probes = 0
        last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]  # of a merge that is listed twice, the last
        place = self._place(keys[last])
        while len(last):
            assert self._probes < 256
            free = self._ranks[place] == _NONE
            self._ranks[place[free]] = last[free]  # where several want one place, one of them stays there
            won = self._ranks[place] == last
            self._keys[place[won]] = keys[last[won]]
            last, place = last[~won], place[~won] + 1
            self._probes += 1

    def _place(self, keys: npt.NDArray[np.uint64]) -> Ints:
        with np.errstate(over="ignore"):
            mixed = (keys ^ (keys >> np.uint64(31))) * GOLDEN
        place: Ints = (mixed >> np.uint64(64 - self._bits)).astype(np.int64)
        return place

    def _rank(self, left: Symbols, right: Symbols) -> Ints:
        """The rank of each pair, `_NONE` where there is no merge."""
        keys = left.astype(np.uint64) << np.uint64(32) | right.astype(np.uint64)
        places = self._place(keys)
        there = self._ranks[places]
        found: Ints = np.where(self._keys[places] == keys, there, _NONE).astype(np.int64)
        open_ = np.flatnonzero((found == _NONE) & (there != _NONE))
        for n in range(1, self._probes):
            if not len(open_):
                break
            probe = places[open_] + n
            hit = self._keys[probe] == keys[open_]
            found[open_[hit]] = self._ranks[probe[hit]]
            open_ = open_[~hit & (self._ranks[probe] != _NONE)]
        return found

    def __call__(self, text: Bytes, lengths: Ints) -> tuple[Symbols, Ints]:
        """Ids of words that lie end to end in `text`, `lengths` bytes each (at least one): int32 [T], and how many
        each word has: int64 [W]."""
        symbols, sizes, word = self.byte_ids[text], lengths, np.arange(len(lengths))
        done: list[tuple[Ints, Ints, Symbols]] = []
        ranks: npt.NDArray[np.integer[Any]] = self._byte_ranks[text[:-1].astype(np.int64) << 8 | text[1:]]
        while len(word):
            alive, busy = self._rounds(symbols, sizes, ranks)
            sizes = np.add.reduceat(alive, np.cumsum(sizes) - sizes, dtype=np.int64)
            symbols, of_busy = symbols[alive], np.repeat(busy, sizes)
            done.append((word[~busy], sizes[~busy], symbols[~of_busy]))
            word, sizes, symbols = word[busy], sizes[busy], symbols[of_busy]
            ranks = self._rank(symbols[:-1], symbols[1:])
        counts = np.zeros(len(lengths), np.int64)
        for words, own, _ in done:
            counts[words] = own
        ids = np.empty(int(counts.sum()), np.int32)
        ends = np.cumsum(counts)
        for words, own, found in done:
            ids[np.arange(len(found)) + np.repeat(ends[words] - np.cumsum(own), own)] = found
        return ids, counts

    def _rounds(self, symbols: Symbols, sizes: Ints, ranks: npt.NDArray[np.integer[Any]]) -> tuple[Bools, Bools]:
        """Merges in place until half of the words are done. Which symbols are left, and which words are not done.

        `ranks` [n - 1] are those of neighbours in the flat array; across words they do not count.
        A symbol knows its neighbours; those that are gone stay where they are until the words are packed again.
        """
        n = len(symbols)
        start = np.cumsum(sizes) - sizes
        after, before = np.arange(1, n + 1), np.arange(-1, n)
        after[start + sizes - 1] = n  # n: no neighbour
        before[start] = n
        # The best pair of a word is the least key: its rank, then its place.
        keys = np.full(n + 1, _NONE << 32, np.int64)
        inner = np.flatnonzero(after[:n] != n)
        keys[inner] = ranks[inner].astype(np.int64) << 32 | inner
        alive = np.ones(n, np.bool_)
        while True:
            best = np.minimum.reduceat(keys[:n], start)
            busy = best < _NONE << 32
            if 2 * np.count_nonzero(busy) <= len(busy):
                return alive, busy
            best = best[busy]
            place = best & 0xFFFFFFFF
            symbols[place] = self._merged[best >> 32]
            gone = after[place]
            right = after[gone]
            after[place], before[right] = right, place
            alive[gone], keys[gone] = False, _NONE << 32
            self._renew(keys, symbols, place, right, n)
            self._renew(keys, symbols, before[place], place, n)

    def _renew(self, keys: Ints, symbols: Symbols, left: Ints, right: Ints, n: int) -> None:
        """Look up the pairs of neighbours again."""
        pair = (left != n) & (right != n)
        keys[left[~pair]] = _NONE << 32
        left, right = left[pair], right[pair]
        keys[left] = self._rank(symbols[left], symbols[right]) << 32 | left


def _looked_up(vocabulary: dict[str, int], tokens: Iterable[str]) -> Symbols:
    return np.fromiter(map(vocabulary.__getitem__, tokens), np.int32)
