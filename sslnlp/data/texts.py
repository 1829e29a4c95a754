"""Runs of documents as UTF-8 in one buffer: as Arrow reads them from a file, without a Python string for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from sslnlp.arrays import Bools, Ints
from sslnlp.data.hashes import Hashes
from sslnlp.errors import UserError

_BEGINNING = 64  # bytes that mostly tell whether there is more than white space


class Texts:
    """n documents in the order of the corpus. `array` is an Arrow array of strings."""

    def __init__(self, array: Any) -> None:
        if array.null_count:
            array = array.fill_null("")
        self.array = array.cast(pa.large_string())

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Raises `UserError` for a text that is not Unicode (it holds half a surrogate pair)."""
        try:
            return cls(pa.array(texts, pa.large_string()))
        except UnicodeEncodeError:
            for text in texts:
                refuse_surrogates(text, "a text")
            raise

    @classmethod
    def join(cls, runs: Sequence[Texts]) -> Texts:
        return runs[0] if len(runs) == 1 else cls(pa.concat_arrays([run.array for run in runs]))

    def __len__(self) -> int:
        return len(self.array)

    def part(self, start: int, stop: int) -> Texts:
        """Documents [start, stop)."""
        return self if start <= 0 and stop >= len(self) else Texts(self.array.slice(start, max(0, stop - start)))

    def select(self, wanted: Bools) -> Texts:
        """Those of the documents that are `wanted` [n]."""
        return self if wanted.all() else Texts(self.array.filter(pa.array(wanted)))

    def strings(self) -> list[str]:
        found: list[str] = self.array.to_pylist()
        return found

    @property
    def num_bytes(self) -> Ints:
        """UTF-8 bytes of each document: int64 [n]."""
        return np.diff(self._offsets())

    def raw(self) -> list[memoryview]:
        """The UTF-8 of each document, not copied."""
        offsets, data = self._offsets().tolist(), memoryview(self.array.buffers()[2] or b"")
        return [data[start:stop] for start, stop in pairwise(offsets)]

    def hashes(self) -> Hashes:
        """As `hash_texts` gives them."""
        raw = b"".join([hashlib.blake2b(one, digest_size=8).digest() for one in self.raw()])
        return np.frombuffer(raw, np.uint64)

    def characters(self) -> Ints:
        """Characters of each document, -1 where there is nothing but white space: int64 [n]."""
        found: Ints = np.array(pc.utf8_length(self.array))
        raw = self.raw()
        blank = [
            n for n, one in enumerate(raw) if not (begin := one[:_BEGINNING].tobytes().decode("utf-8", "ignore"))
            or (begin.isspace() and one.tobytes().decode().isspace())
        ]  # fmt: skip
        found[blank] = -1
        return found

    def _offsets(self) -> Ints:
        if not len(self):
            return np.zeros(1, np.int64)
        first = self.array.offset
        return np.frombuffer(self.array.buffers()[1], np.int64)[first : first + len(self) + 1]


def regrouped(runs: Iterable[Texts], documents: int, most: int, after: int = 0) -> Iterator[Texts]:
    """The documents, without the first `after`, in runs of `documents`, or of fewer that reach `most` bytes."""
    held: list[Texts] = []
    count = size = 0
    for run in runs:
        start, after = min(after, len(run)), after - min(after, len(run))
        while start < len(run):
            part = run.part(start, start + documents - count)
            held.append(part)
            start, count, size = start + len(part), count + len(part), size + int(part.num_bytes.sum())
            if count >= documents or size >= most:
                yield Texts.join(held)
                held, count, size = [], 0, 0
    if held:
        yield Texts.join(held)


def refuse_surrogates(text: str, where: str) -> None:
    """Raise `UserError` for a text that is not Unicode, as JSON can say it; `where` it stands begins the line."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half a surrogate pair ({text[error.start]!r} at character {error.start}), which is no "
            "Unicode; remove it, e.g. with text.encode('utf-8', 'ignore').decode()"
        ) from None
