"""Which pairs of characters no token joins: between them byte-level BPE may be cut, though no pre-token ends there.

A merge across a place makes a token that holds the bytes on both sides of it. If no entry of the vocabulary ends its
left part as the one character does and begins its right part as the other, no merge can ever cross, and both sides
are merged as if the other were not there. In scripts without spaces a clause is one pre-token and hardly ever comes
twice; cut at such places, its parts do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Bools, Ints
from sslnlp.rng import GOLDEN
from sslnlp.tokenizer.words import byte_characters

Points = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.uint64]

_TABLE_BITS = 22
_MEMORY_BITS = 20


class Junctions:
    """The pairs of a vocabulary, of characters outside ASCII. An answer may be "joined" by mistake (a hash collision),
    never "harmless".

    `tokens` are the bytes of the vocabulary's entries. Memory: 21 MiB.
    """

    def __init__(self, tokens: list[bytes]) -> None:
        joins = {join for token in tokens if not token.isascii() for join in _joins(token)}
        self._shapes = sorted({(len(left), len(right)) for left, right in joins})
        keys = [int.from_bytes(left, "big") << 32 | int.from_bytes(right, "big") for left, right in joins]
        self._table = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._table[_hash(np.array(keys, np.uint64), _TABLE_BITS)] = True
        # Answers remembered by pair: a direct-mapped cache.
        self._pairs = np.zeros(1 << _MEMORY_BITS, np.uint64)
        self._answers = np.zeros(1 << _MEMORY_BITS, np.bool_)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Junctions | None:
        """From a `tokenizer.json` with `ByteLevel`; None where the model may do more than merge bytes."""
        if not merges_bytes(facts["model"]):
            return None
        inverse = {ord(character): byte for byte, character in byte_characters().items()}
        # Most are a space (spelt as one of the inverse) and ASCII, which has no junctions.
        space = byte_characters()[0x20]
        foreign = (token for token in facts["model"]["vocab"] if not token.replace(space, "").isascii())
        spelt = filter({chr(point) for point in inverse}.issuperset, foreign)
        return cls([token.translate(inverse).encode("latin-1") for token in spelt])

    def harmless(self, left: Points, right: Points) -> Bools:
        """bool [n]: no token reaches across from `left` to `right`, code points [n] of neighbouring characters."""
        pairs = (left << 21 | right).astype(np.uint64)
        places = _hash(pairs, _MEMORY_BITS)
        answers = self._answers[places]
        new = np.flatnonzero(self._pairs[places] != pairs)
        if len(new):
            distinct, back = np.unique(pairs[new], return_inverse=True)
            found = ~self._joined(distinct)
            where = _hash(distinct, _MEMORY_BITS)
            # Two pairs of one place: both arrays are written in the same order, so the same one stays in both.
            self._pairs[where], self._answers[where] = distinct, found
            answers[new] = found[back]
        return answers

    def _joined(self, pairs: Numbers) -> Bools:
        left, left_length = _utf8(pairs >> np.uint64(21))
        right, right_length = _utf8(pairs & np.uint64((1 << 21) - 1))
        joined = np.zeros(len(pairs), np.bool_)
        for before, after in self._shapes:  # the last bytes of the one, the first bytes of the other
            fits = (left_length >= before) & (right_length >= after)
            end = left & np.uint64((1 << 8 * before) - 1)
            begin = right >> (np.uint64(8) * (np.maximum(right_length, after) - after).astype(np.uint64))
            joined |= fits & self._table[_hash(end << np.uint64(32) | begin, _TABLE_BITS)]
        return joined


def merges_bytes(model: dict[str, Any]) -> bool:
    """Whether a model of `tokenizer.json` merges bytes and does nothing else: all known, no affixes, no dropout."""
    if model["type"] != "BPE" or model.get("dropout") or model.get("ignore_merges"):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    return all(character in model["vocab"] for character in byte_characters().values())


def _joins(token: bytes) -> list[tuple[bytes, bytes]]:
    """Each place inside a token between two characters: what it holds of the one before and of the one after."""
    leads = [i for i, byte in enumerate(token) if byte & 0xC0 != 0x80]
    if leads[:1] != [0]:
        leads = [0, *leads]
    ends = [*leads[1:], len(token)]
    return [
        (token[leads[i] : ends[i]], token[leads[i + 1] : ends[i + 1]])
        for i in range(len(leads) - 1)
        if ends[i] - leads[i] <= 4 and ends[i + 1] - leads[i + 1] <= 4
    ]


def _utf8(points: Numbers) -> tuple[Numbers, Ints]:
    """The UTF-8 bytes of characters as big-endian numbers, and how many: uint64 [n], int64 [n]."""
    u = [np.uint64(n) for n in range(64)]
    low = [np.uint64(0x80) | (points >> u[6 * n] & u[63]) for n in range(3)]
    two = (np.uint64(0xC0) | points >> u[6]) << u[8] | low[0]
    three = (np.uint64(0xE0) | points >> u[12]) << u[16] | low[1] << u[8] | low[0]
    four = (np.uint64(0xF0) | points >> u[18]) << u[24] | low[2] << u[16] | low[1] << u[8] | low[0]
    length = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    number: Numbers = np.choose(length - 1, [points, two, three, four])
    return number, length


def _hash(keys: Numbers, bits: int) -> Ints:
    with np.errstate(over="ignore"):
        mixed = (keys ^ (keys >> np.uint64(29))) * GOLDEN
    place: Ints = (mixed >> np.uint64(64 - bits)).astype(np.int64)
    return place
