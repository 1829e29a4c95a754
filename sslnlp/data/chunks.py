"""Each distinct chunk of text once: a table from the bytes of a chunk to its ids, in bounded memory.

Chunks of at most 16 bytes are looked up, all of a block at once, in direct-mapped fronts keyed by those bytes. What is
not found there is looked up in a hash table of all that is known. The few that are longer stand in a dictionary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]

from sslnlp.arrays import Bytes, Ints
from sslnlp.rng import GOLDEN
from sslnlp.tokenizer.cuts import SEPARATOR

Symbols = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]

LONGEST = 64
"""Bytes of a chunk that is remembered; longer ones hardly come again."""
MAX_CHUNKS = 1 << 19
MAX_IDS = 1 << 23
"""Of chunks and of ids held: past either, the table begins anew. At most about 120 MiB in all."""
FRONT_BITS = (18, 17)
"""Places of the fronts for chunks of at most 8 and 16 bytes, as powers of two."""
_SECOND = np.uint64(0xC2B2AE3D27D4EB4F)
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_MARK = bytes([SEPARATOR])

Number = TypeVar("Number", np.int32, np.int64, np.uint64)
Encode = Callable[[Bytes, Ints], tuple[Symbols, Ints]]
Block = tuple[Ints, Ints]


class _Found(NamedTuple):
    """What the fronts know of the chunks of a block."""

    slots: Symbols
    missed: Ints
    """Which chunks they do not know, first those of at most 8 bytes."""
    short: int
    """How many of these."""
    pairs: Keys
    """Of each of the missed, its bytes: uint64 [n, 2]."""
    odd: Ints
    """Which chunks make no key,"""
    at: Ints
    """where each of them begins,"""
    lengths: Ints
    """and its length."""


class _Front:
    """A direct-mapped cache of slots keyed by one or two 64-bit words: the last key put at a place stands there."""

    def __init__(self, bits: int, words: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._keys = [np.zeros(1 << bits, np.uint64) for _ in range(words)]
        self._slots = np.full(1 << bits, -1, np.int32)

    def find(self, *keys: Keys) -> Symbols:
        """Slots of the keys, -1 where not there."""
        place = self._place(keys)
        slots: Symbols = self._slots[place]
        for stored, asked in zip(self._keys, keys, strict=True):
            slots[stored[place] != asked] = -1
        return slots

    def keep(self, slots: Symbols, *keys: Keys) -> None:
        place = self._place(keys)
        for stored, given in zip(self._keys, keys, strict=True):
            stored[place] = given
        self._slots[place] = slots

    def _place(self, keys: tuple[Keys, ...]) -> Ints:
        place: Ints = (_mixed(*keys) >> self._shift).view(np.int64)
        return place


class _Numbers:
    """An open hash table of keys of two words, numbered in the order they came: a key stands at its place or at the
    next that was free."""

    def __init__(self) -> None:
        self.used = 0
        self._keys: Keys = np.zeros((1 << 10, 2), np.uint64)
        self._table: Symbols = np.full(1 << 11, -1, np.int32)

    def of(self, pairs: Keys) -> Symbols:
        """The number of each key [n, 2]; those not known, which may repeat, get the next ones."""
        first, total = self.used, self.used + len(pairs)
        if 2 * total > len(self._table):
            self._table = np.full(1 << (2 * total).bit_length(), -1, np.int32)
            self._put(self._keys[:first], np.arange(first, dtype=np.int32))
        self._keys = _grown(self._keys, total)
        self._keys[first:total] = pairs
        own = np.arange(first, total, dtype=np.int32)
        numbers, place = self._put(pairs, own)
        new = np.flatnonzero(numbers == own)
        self.used = first + len(new)
        again = own.copy()  # of a new key its number: there may be fewer of them than keys
        again[new] = self._table[place[new]] = np.arange(first, self.used, dtype=np.int32)
        self._keys[first : self.used] = pairs[new]
        fresh = numbers >= first
        numbers[fresh] = again[numbers[fresh] - first]
        return numbers

    def skip(self, n: int) -> None:
        """Give `n` numbers to what is no key."""
        self._keys = _grown(self._keys, self.used + n)
        self._keys[self.used : self.used + n] = 0
        self.used += n

    def since(self, number: int) -> Keys:
        """The keys from a number on: uint64 [n, 2]."""
        return self._keys[number : self.used]

    def _put(self, pairs: Keys, own: Symbols) -> tuple[Symbols, Ints]:
        """Which number stands for each key, its own where none did; and where. `_keys` has the keys of all numbers."""
        place: Ints = (_mixed(pairs[:, 0], pairs[:, 1]) >> np.uint64(65 - len(self._table).bit_length())).view(np.int64)
        numbers = own.copy()
        left = np.arange(len(pairs))
        while len(left):
            at = place[left]
            free = self._table[at] < 0
            self._table[at[free]] = own[left[free]]  # where several want one place, one of them stays there
            holder = self._table[at]
            same = (self._keys[holder] == pairs[left]).all(1)
            numbers[left[same]] = holder[same]
            left = left[~same]
            place[left] = (place[left] + 1) & (len(self._table) - 1)
        return numbers, place


class ChunkTable:
    """Ids of chunks, those of a chunk seen before from memory.

    `encode` is given new chunks, with a `SEPARATOR` before each and after the last, and the length of each, and
    returns their ids end to end, and how many each has.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._reset()

    def _reset(self) -> None:
        short, long = FRONT_BITS
        self._short, self._long = _Front(short, 1), _Front(long, 2)
        self._slots = _Numbers()
        self._odd: dict[bytes, int] = {}
        self._size = 0
        self._where: Ints = np.zeros(1 << 10, np.int64)  # of a slot: start << 32 | number of ids
        self._ids: Symbols = np.zeros(1 << 10, np.int32)

    def __call__(self, buffer: Bytes, blocks: Sequence[Block]) -> Iterator[tuple[Symbols, Ints]]:
        """Of each block, the ids of its chunks end to end, int32 [T], and where those of each chunk end, int64 [n].

        A block is where its chunks begin in `buffer`, and their lengths; `buffer` goes on for 16 bytes behind them.
        """
        if self._slots.used > MAX_CHUNKS or self._size > MAX_IDS:
            self._reset()
        before = self._slots.used
        found = []
        for at, lengths in blocks:
            found.append(block := self._find(buffer, at, lengths))
            self._settle(block, self._slots.of(block.pairs))
        new, odd = self._slots.since(before), self._odd_slots(buffer, found)
        if len(new) or odd:
            self._fill(new, odd)
        for block in found:
            yield self._ids_of(block.slots)

    def _find(self, buffer: Bytes, at: Ints, lengths: Ints) -> _Found:
        words = np.lib.stride_tricks.as_strided(buffer[:8].view(np.uint64), (len(buffer) - 7,), (1,))
        heads = words[at] & _MASKS.take(lengths, mode="clip")
        # A key tells chunks apart only if none of them holds the byte that pads it.
        most = 16 if buffer[int(at[0]) : int(at[-1] + lengths[-1])].all() else 0
        slots = self._short.find(heads)
        long = np.flatnonzero(lengths > min(8, most))
        slots[long] = 0
        missed, odd = np.flatnonzero(slots < 0), np.zeros(0, np.int64)
        if len(long) and lengths[long].max() > most:
            odd, long = long[lengths[long] > most], long[lengths[long] <= most]
        tails = words[at[long] + 8] & _MASKS.take(lengths[long] - 8, mode="clip")
        slots[long] = known = self._long.find(heads[long], tails)
        new = np.flatnonzero(known < 0)
        pairs = np.zeros((len(missed) + len(new), 2), np.uint64)
        missed = np.concatenate([missed, long[new]])
        pairs[:, 0] = heads[missed]
        pairs[len(missed) - len(new) :, 1] = tails[new]
        return _Found(slots, missed, len(missed) - len(new), pairs, odd, at[odd], lengths[odd])

    def _settle(self, block: _Found, slots: Symbols) -> None:
        """Give the missed chunks of a block their slots, and let the fronts know."""
        block.slots[block.missed] = slots
        short, long = block.pairs[: block.short], block.pairs[block.short :]
        self._short.keep(slots[: block.short], short[:, 0])
        self._long.keep(slots[block.short :], long[:, 0], long[:, 1])

    def _odd_slots(self, buffer: Bytes, blocks: list[_Found]) -> list[bytes]:
        """Give slots to the chunks that make no key. Those that are new."""
        new: dict[bytes, int] = {}
        for block in blocks:
            if not len(block.odd):
                continue
            base = block.at[0]  # Arrow counts bytes in 32 bits, and there may be more before the block
            at, lengths = block.at - base, block.lengths
            bounds = np.empty(2 * len(at) + 1, np.int32)  # chunk, what is between, chunk, ...
            bounds[0:-1:2], bounds[1:-1:2], bounds[-1] = at, at + lengths, at[-1] + lengths[-1]
            buffers = [None, pa.py_buffer(bounds), pa.py_buffer(buffer[base:])]
            every = pa.Array.from_buffers(pa.binary(), 2 * len(at), buffers)
            distinct = every.take(pa.array(np.arange(0, 2 * len(at), 2))).dictionary_encode()
            slots = [
                self._odd[chunk] if chunk in self._odd else new.setdefault(chunk, self._slots.used + len(new))
                for chunk in distinct.dictionary.to_pylist()
            ]
            block.slots[block.odd] = np.array(slots, np.int32)[distinct.indices.to_numpy()]
        self._slots.skip(len(new))
        self._odd |= {chunk: slot for chunk, slot in new.items() if len(chunk) <= LONGEST}
        return list(new)

    def _fill(self, new: Keys, odd: list[bytes]) -> None:
        """Encode the chunks in the last slots: those of the keys [n, 2], then the odd ones."""
        spelt = np.full((len(new), 17), SEPARATOR, np.uint8)
        spelt[:, 1:] = new.view(np.uint8).reshape(-1, 16)
        there = spelt != 0
        lengths = np.concatenate([there.sum(1) - 1, np.array([len(chunk) for chunk in odd], np.int64)])
        others = np.frombuffer(_MARK + _MARK.join([*odd, b""]), np.uint8)
        ids, counts = self._encode(np.concatenate([spelt[there], others]), lengths)
        used, size = self._slots.used, self._size + len(ids)
        self._where, self._ids = _grown(self._where, used), _grown(self._ids, size)
        self._ids[self._size : size] = ids
        self._where[used - len(lengths) : used] = (self._size + np.cumsum(counts) - counts) << 32 | counts
        self._size = size

    def _ids_of(self, slots: Symbols) -> tuple[Symbols, Ints]:
        """The ids of the chunks in `slots`, and where those of each end."""
        found = self._where[slots]
        counts = found & 0xFFFFFFFF
        ends = np.cumsum(counts)
        found >>= 32
        found -= ends
        found += counts
        where = np.repeat(found, counts)
        where += np.arange(len(where))
        return self._ids[where], ends


def _mixed(one: Keys, two: Keys | None = None) -> Keys:
    with np.errstate(over="ignore"):
        mixed: Keys = one * GOLDEN if two is None else (one ^ two * _SECOND) * GOLDEN
        mixed ^= mixed >> np.uint64(32)
        mixed *= GOLDEN
    return mixed


def _grown(array: npt.NDArray[Number], size: int) -> npt.NDArray[Number]:
    if size <= len(array):
        return array
    larger = np.zeros((max(size, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger
