"""Every picture is looked at once before training: which can be decoded, and which are the same."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL

from sslnlp.arrays import Bools, Bytes, Ints
from sslnlp.data.hashes import Hashes
from sslnlp.data.picture_contents import MISSING, Contents
from sslnlp.data.prepare import bars
from sslnlp.locks import in_turn
from sslnlp.pictures import BrokenPicture, decode

_VERSION = 1
"""Of what is stored and of what counts as broken: a change makes pictures be looked at anew."""
RUN = 32
"""Pictures that one thread reads and decodes at a time."""
SMALL = 32
"""Reading a JPEG at an eighth of its size finds all that is wrong with it, in a fraction of the time."""


@dataclass
class Verdict:
    """What was found out about N pictures."""

    hashes: Hashes
    """uint64 [N], of the bytes of the file: equal for equal pictures. 0 where there is no file."""
    numbers: Bytes
    """[N], indices into `reasons`; 0 for a picture that can be used."""
    reasons: list[str]
    """`reasons[0]` is empty."""

    @property
    def good(self) -> Bools:
        """Which can be used: bool [N]."""
        return np.asarray(self.numbers == 0)

    def counts(self) -> dict[str, int]:
        """Reason -> number of pictures that are broken so, the most frequent first."""
        counted = Counter(self.numbers.tolist())
        return {self.reasons[number]: n for number, n in counted.most_common() if number}


def check(contents: Contents, count: int, cache: str | Path | None) -> Verdict:
    """Decode the first `count` pictures once, by several threads, or find in the folder `cache` that it was done."""
    if cache is None:
        return _look_at(contents, count)
    root = Path(cache)
    what = (_VERSION, PIL.__version__, contents.fingerprint, count)
    name = f"pictures-{hashlib.blake2b(repr(what).encode(), digest_size=12).hexdigest()}"
    with in_turn(root, name):
        final = root / f"{name}.npz"
        if final.exists():
            with np.load(final) as stored:
                return Verdict(stored["hashes"], stored["reasons"], stored["words"].tolist())
        verdict = _look_at(contents, count)
        aside = root / f".{name}.npz"
        with aside.open("wb") as file:
            np.savez(file, hashes=verdict.hashes, reasons=verdict.numbers, words=np.array(verdict.reasons))
        os.replace(aside, final)
    return verdict


def _look_at(contents: Contents, count: int) -> Verdict:
    hashes = np.zeros(count, np.uint64)
    numbers = np.zeros(count, np.uint8)
    known = {"": 0}
    runs = [np.arange(start, min(start + RUN, count)) for start in range(0, count, RUN)]
    with bars() as bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        advance = bar("looking at pictures", count)
        try:
            for index, found in zip(runs, pool.map(partial(_look_at_run, contents), runs), strict=True):
                hashes[index] = [number for number, _ in found]
                numbers[index] = [known.setdefault(reason, len(known)) for _, reason in found]
                advance(len(index))
        except BaseException:  # an interruption must not wait for pictures that nobody will ask for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Verdict(hashes, numbers, list(known))


def _look_at_run(contents: Contents, index: Ints) -> list[tuple[int, str]]:
    """Hash and reason of each; a picture that comes again is decoded once."""
    try:
        read: list[bytes | None] = list(contents.read(index))
    except BrokenPicture:
        read = [_read_one(contents, i) for i in index.tolist()]
    found: dict[bytes, str] = {}
    out = []
    for content in read:
        if content is None:
            out.append((0, MISSING))
            continue
        if content not in found:
            found[content] = _reason(content)
        digest = hashlib.blake2b(content, digest_size=8).digest()
        out.append((int.from_bytes(digest, "little"), found[content]))
    return out


def _read_one(contents: Contents, index: int) -> bytes | None:
    try:
        return contents.read(np.array([index]))[0]
    except BrokenPicture:
        return None


def _reason(content: bytes) -> str:
    try:
        decode(content, size=SMALL)
    except BrokenPicture as error:
        return str(error)
    return ""
