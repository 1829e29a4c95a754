"""Hashes of documents, and a set of them that takes 8 bytes each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Bools

Hashes = npt.NDArray[np.uint64]


def hash_texts(texts: Sequence[str]) -> Hashes:
    """The 64-bit blake2b hash of each text: uint64 [n]. Uniform, so it also decides which side of a split a text is on.

    Among 10^8 different documents two share a hash with probability 3e-4.
    """
    raw = b"".join(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(raw, np.uint64)


def hash_same(texts: Sequence[str]) -> Hashes:
    """`hash_texts` without outer white space and case: two texts that a person would call the same share it."""
    return hash_texts([text.strip().lower() for text in texts])


class HashSet:
    """A growing set of 64-bit hashes: 8 bytes each in a few sorted runs, as a log-structured merge tree keeps them.

    Growing takes another 8 bytes a hash for the moment of a merge. A Python set of integers would take about 60.
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def contains(self, hashes: Hashes) -> Bools:
        """Which of `hashes` are in the set: bool [n]."""
        found = np.zeros(len(hashes), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            found |= run[at] == hashes
        return found

    def add(self, hashes: Hashes) -> Bools:
        """Put `hashes` in; which of them were new, a repeat inside `hashes` not counting twice: bool [n]."""
        _, first = np.unique(hashes, return_index=True)
        new = np.zeros(len(hashes), bool)
        new[first] = True
        new &= ~self.contains(hashes)
        run = np.sort(hashes[new])
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)
        return new
