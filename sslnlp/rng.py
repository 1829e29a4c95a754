"""Random numbers as a pure function of (seed, purpose, position): nothing to save, nothing to replay.

The generator is SplitMix64 (Steele, Lea and Flood, 2014) used as a counter-based hash: draw j of row p is
`mix(key(seed, purpose) + mix(p) + j * golden)`. Any draw can be made without the draws before it, so a run that
resumes, has other workers, or is split over processes sees the same masks, crops and order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Floats, Ints

U64 = npt.NDArray[np.uint64]
Positions = Sequence[int] | Ints

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio: its multiples fall evenly into the circle of integers, and a product with it spreads bits."""
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def key(seed: int, *purpose: str | int) -> int:
    """A 63-bit integer for (seed, purpose): the seed of a `torch.Generator`, or the base of `uniform`."""
    text = "\x1f".join(str(part) for part in (seed, *purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def mix(x: U64) -> U64:
    """The SplitMix64 finaliser, element-wise, on uint64 (wraps modulo 2^64)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _M1
        x = (x ^ (x >> np.uint64(27))) * _M2
        mixed: U64 = x ^ (x >> np.uint64(31))
    return mixed


def bits(seed: int, purpose: str, positions: Positions, n: int) -> U64:
    """`n` 64-bit draws for each position: uint64 [len(positions), n]."""
    rows = np.asarray(positions, dtype=np.uint64)
    with np.errstate(over="ignore"):
        base = mix(rows * GOLDEN + np.uint64(key(seed, purpose)))
        return mix(base[:, None] + np.arange(1, n + 1, dtype=np.uint64)[None, :] * GOLDEN)


def uniform(seed: int, purpose: str, positions: Positions, n: int) -> Floats:
    """`n` uniform draws in [0, 1) for each position: float64 [len(positions), n], 53 bits each."""
    drawn: Floats = (bits(seed, purpose, positions, n) >> np.uint64(11)) * 2.0**-53
    return drawn


class Permutation:
    """A random permutation of range(n), evaluated at any index in O(1) memory.

    A four-round Feistel network over the smallest even-bit domain that holds `n`, with cycle walking (Black and
    Rogaway, 2002). Ten billion rows need no shuffled index in memory, and resuming needs no replay.
    """

    def __init__(self, n: int, seed: int, purpose: str = "order") -> None:
        if n < 1:
            raise ValueError(f"a permutation needs at least one element, got n={n}")
        self.n = n
        self._half = np.uint64(max(1, (max(1, (n - 1).bit_length()) + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = [np.uint64(key(seed, purpose, "feistel", r)) for r in range(4)]

    def _once(self, x: U64) -> U64:
        left, right = x >> self._half, x & self._mask
        for k in self._keys:
            left, right = right, left ^ (mix(right + k) & self._mask)
        joined: U64 = (left << self._half) | right
        return joined

    def __call__(self, index: Positions) -> Ints:
        """The images of `index` (each in range(n)): int64, same length."""
        with np.errstate(over="ignore"):
            x = self._once(np.asarray(index, dtype=np.uint64))
            while (out := x >= np.uint64(self.n)).any():
                x[out] = self._once(x[out])
        return x.astype(np.int64)
