"""Each distinct chunk of text once: a table from the bytes of a chunk to its ids, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]

LONGEST = 64
"""Bytes of a chunk that is remembered; longer ones hardly come again."""
MAX_CHUNKS = 1 << 19
MAX_IDS = 1 << 23
"""Of chunks and of ids held: past either, the table begins anew. At most about 160 MiB in all."""
FRONT_BITS = (18, 17)
"""Places of the fronts for chunks of at most 8 and 16 bytes, as powers of two."""
_SPREAD, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)

Number = TypeVar("Number", np.int32, np.int64)
Encode = Callable[[list[bytes]], tuple[Symbols, Ints]]


class _Front:
    """A direct-mapped cache of slots keyed by one or two 64-bit words: the last key put at a place stands there."""

    def __init__(self, bits: int, words: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._keys = [np.zeros(1 << bits, np.uint64) for _ in range(words)]
        self._slots = np.full(1 << bits, -1, np.int32)

    def clear(self) -> None:
        self._slots[:] = -1

    def find(self, *keys: Keys) -> tuple[Symbols, npt.NDArray[np.bool_]]:
        """Slots, and which of them are those of the keys."""
        place = self._place(keys)
        slots: Symbols = self._slots[place]
        hit = slots >= 0
        for stored, asked in zip(self._keys, keys, strict=True):
            hit &= stored[place] == asked
        return slots, hit

    def keep(self, slots: Symbols, *keys: Keys) -> None:
        place = self._place(keys)
        for stored, given in zip(self._keys, keys, strict=True):
            stored[place] = given
        self._slots[place] = slots

    def _place(self, keys: tuple[Keys, ...]) -> Ints:
        with np.errstate(over="ignore"):
            mixed = keys[0] * _SPREAD if len(keys) == 1 else (keys[0] ^ keys[1] * _SECOND) * _SPREAD
        mixed ^= mixed >> np.uint64(32)
        mixed *= _SPREAD
        place: Ints = (mixed >> self._shift).view(np.int64)
        return place


class ChunkTable:
    """Slots of chunks and the ids in them. `find` may give slots to chunks not seen before; `fill` puts ids in.

    Chunks of at most 16 bytes are looked up, all of a block at once, in direct-mapped fronts keyed by those bytes;
    what is not found there is made distinct by Arrow and looked up in a dictionary.

    `encode` gives the ids of a list of chunks end to end, and how many each has.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        short, long = FRONT_BITS
        self._short, self._long = _Front(short, 1), _Front(long, 2)
        self._reset()

    def _reset(self) -> None:
        self._slots: dict[bytes, int] = {}
        self._pending: list[bytes] = []
        self._used = self._size = 0
        self._where: Ints = np.zeros(1 << 12, np.int64)  # start << 32 | number of ids
        self._ids: Symbols = np.zeros(1 << 12, np.int32)
        self._short.clear()
        self._long.clear()

    def begin(self) -> None:
        """Between two batches: slots given before may now become invalid."""
        if len(self._slots) > MAX_CHUNKS or self._used > 2 * MAX_CHUNKS or self._size > MAX_IDS:
            self._reset()

    def find(self, block: Bytes, at: Ints, lengths: Ints) -> Symbols:
        """The slot of each chunk: int32 [n]. `block` goes on for 16 bytes behind the last chunk."""
        words = np.lib.stride_tricks.as_strided(block[:8].view(np.uint64), (len(block) - 7,), (1,))
        heads = words[at] & _MASKS.take(lengths, mode="clip")
        # A key tells chunks apart only if none of them holds the byte that pads it.
        padded = not block[int(at[0]) : int(at[-1] + lengths[-1])].all()
        slots, hit = self._short.find(heads)
        known = hit & (lengths <= (0 if padded else 8))
        long = np.flatnonzero((lengths > 8) & (lengths <= (0 if padded else 16)))
        tails = words[at[long] + 8] & _MASKS.take(lengths[long] - 8, mode="clip")
        slots[long], known[long] = self._long.find(heads[long], tails)
        missed = np.flatnonzero(~known)
        if len(missed):
            slots[missed] = self._look_up(block, at[missed], lengths[missed])
            kept = missed[lengths[missed] <= (0 if padded else 8)]
            self._short.keep(slots[kept], heads[kept])
            kept = np.flatnonzero(~known[long])
            self._long.keep(slots[long[kept]], heads[long[kept]], tails[kept])
        return slots

    def _look_up(self, block: Bytes, at: Ints, lengths: Ints) -> Symbols:
        base = at[0]  # Arrow counts bytes in 32 bits, and there may be more before the block
        bounds = np.empty(2 * len(at) + 1, np.int32)  # chunk, what is between, chunk, ...
        at = at - base
        bounds[0:-1:2], bounds[1:-1:2], bounds[-1] = at, at + lengths, at[-1] + lengths[-1]
        every = pa.Array.from_buffers(
            pa.binary(),
            2 * len(at),
            [None, pa.py_buffer(bounds), pa.py_buffer(block[base:])],
        )
        distinct = every.take(pa.array(np.arange(0, 2 * len(at), 2))).dictionary_encode()
        chunks = distinct.dictionary.to_pylist()
        found = np.fromiter(map(self._slots.get, chunks, repeat(-1)), np.int32, len(chunks))
        new = np.flatnonzero(found < 0)
        if len(new):
            first = self._used + len(self._pending)
            found[new] = np.arange(first, first + len(new))
            added = [chunks[n] for n in new.tolist()]
            self._pending += added
            # Longer ones hardly come again; a block has few of them.
            self._slots.update(zip(added, range(first, first + len(new)), strict=True))
            for chunk in added if lengths.max() > LONGEST else ():
                if len(chunk) > LONGEST:
                    del self._slots[chunk]
        slots: Symbols = found[distinct.indices.to_numpy()]
        return slots

    def fill(self) -> None:
        """Encode the chunks that got a slot since the last call."""
        if not self._pending:
            return
        ids, counts = self._encode(self._pending)
        used, size = self._used + len(counts), self._size + len(ids)
        self._where = _grown(self._where, used)
        self._ids = _grown(self._ids, size)
        self._where[self._used : used] = (self._size + np.cumsum(counts) - counts) << 32 | counts
        self._ids[self._size : size] = ids
        self._used, self._size, self._pending = used, size, []

    def ids(self, slots: Symbols) -> tuple[Symbols, Ints]:
        """The ids of the chunks in order, int32 [T], and where those of each end, int64 [n]."""
        found = self._where[slots]
        counts = found & 0xFFFFFFFF
        ends = np.cumsum(counts)
        found >>= 32
        found -= ends
        found += counts
        where = np.repeat(found, counts)
        where += np.arange(len(where))
        return self._ids[where], ends


def _grown(array: npt.NDArray[Number], size: int) -> npt.NDArray[Number]:
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger
