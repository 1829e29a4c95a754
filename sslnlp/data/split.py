"""Which documents train, which are held out, which are dropped: one pass, one byte a document on disk."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sslnlp.arrays import Bools, Ints
from sslnlp.data.hashes import Hashes, HashSet
from sslnlp.data.store import open_array

DROPPED, TRAIN, VALID = 0, 1, 2
_MAY_BE_VALID = 3  # until the pass has ended
CHARS_PER_TOKEN = 4  # roughly, of English; only decides which documents are too long to be held out
_CHUNK = 1 << 20


class Documents(NamedTuple):
    """What is decided on: a batch of n documents in the order of the corpus."""

    hashes: Hashes
    chars: Ints
    """Characters of each, -1 where there is nothing but white space."""
    count: Callable[[int], int]
    """Tokens of document i of the batch; asked of few."""


def too_long(chars: Ints, max_tokens: int | None) -> Bools:
    """Which documents of so many characters always train: alone they would be more than the tokens allowed."""
    return np.zeros(len(chars), bool) if max_tokens is None else chars > CHARS_PER_TOKEN * max_tokens


class HeldOut:
    """The documents of smallest hash, up to a share of all and a number of tokens, in bounded memory.

    Taken in the order of their hashes, so the choice does not depend on the order of the corpus. A document so long
    that it alone would be more than the tokens allowed always trains. At least one document is held out where there
    are two, unless it is more than half of the text.
    """

    def __init__(self, fraction: float, max_tokens: int | None) -> None:
        self._wanted = fraction > 0
        self._bound = int(fraction * 2.0**64)
        self._max = max_tokens
        self._heap: list[tuple[int, int]] = []  # (-hash, tokens)
        self._tokens = self._chars = 0
        self._smallest = (1 << 64, 0)  # hash, characters

    def offer(self, documents: Documents, eligible: Bools) -> Bools:
        """Consider documents; `eligible` are those not dropped. Returns which of them may be held out: bool [n]."""
        chars = documents.chars
        self._chars += int(chars[eligible].sum())
        if not self._wanted:
            return np.zeros(len(chars), bool)
        eligible = eligible & ~too_long(chars, self._max)
        for i in np.flatnonzero(eligible).tolist():
            number = int(documents.hashes[i])
            self._smallest = min(self._smallest, (number, int(chars[i])))
            if number < self._bound and self._max is not None:
                self._keep_smallest(number, documents.count(i), self._max)
        return eligible

    def _keep_smallest(self, number: int, tokens: int, most: int) -> None:
        heapq.heappush(self._heap, (-number, tokens))
        self._tokens += tokens
        while self._tokens > most and len(self._heap) > 1:
            negative, dropped = heapq.heappop(self._heap)
            self._tokens -= dropped
            self._bound = min(self._bound, -negative)

    def bound(self) -> int:
        """Documents that may be held out and whose hash is below this are."""
        smallest, chars = self._smallest
        if not self._wanted or 2 * chars > self._chars:
            return 0
        if smallest == 1 << 64:
            return self._bound  # there is none
        return max(self._bound, smallest + 1)


@dataclass
class Scan:
    """Counts of one pass over the training documents."""

    read: int = 0
    empty: int = 0
    duplicates: int = 0
    overlap: int = 0
    train: int = 0
    valid: int = 0


def scan(
    documents: Iterable[Documents],
    directory: Path,
    *,
    held_out: HeldOut | None,
    valid: HashSet | None,
    deduplicate: bool,
    advance: Callable[[int], None] = lambda n: None,
) -> Scan:
    """Decide about every document; `directory` then holds `decisions.bin` (uint8 [D]) and `scan.json`.

    Memory: 8 bytes a different document while it runs (none when `deduplicate` is off).
    """
    facts, seen = Scan(), HashSet()
    with (directory / "hashes.bin").open("wb") as hash_file, (directory / "kept.bin").open("wb") as kept_file:
        for batch in documents:
            hashes, kept = batch.hashes, batch.chars >= 0
            facts.read += len(kept)
            facts.empty += int((~kept).sum())
            if deduplicate:
                new = np.zeros(len(kept), bool)
                new[kept] = seen.add(hashes[kept])
                facts.duplicates += int((kept & ~new).sum())
                kept = new
            if valid is not None:
                leaked = kept & valid.contains(hashes)
                facts.overlap += int(leaked.sum())
                kept &= ~leaked
            decision = np.where(kept, TRAIN, DROPPED).astype(np.uint8)
            if held_out is not None:
                decision[held_out.offer(batch, kept)] = _MAY_BE_VALID
            hash_file.write(hashes.tobytes())
            kept_file.write(decision.tobytes())
            facts.train += int(kept.sum())
            advance(len(kept))
    facts.valid = _decide(directory, held_out.bound() if held_out is not None else 0)
    facts.train -= facts.valid
    (directory / "scan.json").write_text(json.dumps(asdict(facts)))
    return facts


def _decide(directory: Path, bound: int) -> int:
    """Write the decisions from hashes and kept; how many documents are held out."""
    hashes, kept = open_array(directory / "hashes.bin", np.uint64), open_array(directory / "kept.bin", np.uint8)
    out = 0
    with (directory / "decisions.bin").open("wb") as file:
        for start in range(0, len(kept), _CHUNK):
            decision = np.array(kept[start : start + _CHUNK])
            candidate = decision == _MAY_BE_VALID
            held = candidate & (hashes[start : start + _CHUNK] < np.uint64(min(bound, 2**64 - 1)))
            decision[candidate] = TRAIN
            decision[held] = VALID
            out += int(held.sum())
            file.write(decision.tobytes())
    (directory / "hashes.bin").unlink()
    (directory / "kept.bin").unlink()
    return out
