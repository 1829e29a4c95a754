"""The documents inside an index: one JSON line each, found by row number without reading the others."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sslnlp.errors import UserError
from sslnlp.search.documents import Document

LINES, OFFSETS, IDS = "documents.jsonl", "offsets.npy", "ids.json"


class Written(NamedTuple):
    """What `write_documents` did."""

    documents: int
    empty: int


def twice(name: str) -> UserError:
    """What is said of an id that two documents have."""
    return UserError(f"two documents have the id {name!r}: ids must be unique")


def write_documents(folder: Path, documents: Iterable[Document], *, keep_empty: bool = False) -> Written:
    """Write `documents` into `folder` in one pass; those without any text are left out and counted, or kept.

    Raises UserError when nothing is left and when an id comes twice (a judgement for it would mean two documents).
    """
    seen: dict[str, None] = {}
    offsets, empty = array("q", [0]), 0
    with open(folder / LINES, "wb") as lines:
        for document in documents:
            if not (keep_empty or document.content):
                empty += 1
                continue
            if document.id in seen:
                raise twice(document.id)
            seen[document.id] = None
            # A lone surrogate is legal in a JSON string and in no encoding; ASCII escapes carry it through unharmed.
            line = json.dumps(document._asdict()).encode("ascii") + b"\n"
            lines.write(line)
            offsets.append(offsets[-1] + len(line))
    if not seen:
        found = f"{empty} documents, all without text" if empty else "no documents"
        raise UserError(f"the corpus is empty: {found}")
    np.save(folder / OFFSETS, np.frombuffer(offsets, dtype=np.int64))
    (folder / IDS).write_text(json.dumps(list(seen)), encoding="utf-8")
    return Written(len(seen), empty)


class DocumentStore:
    """Read access to written documents by row, over the segments in `folders` joined end to end.

    Rows count from 0 through all segments; those in `deleted` keep their numbers and are no documents any more.
    """

    def __init__(self, folders: Sequence[Path], deleted: Iterable[int] = ()) -> None:
        self._folders = folders
        self._offsets = [np.load(folder / OFFSETS, mmap_mode="r") for folder in folders]
        self.counts = [len(offsets) - 1 for offsets in self._offsets]
        self._firsts = list(accumulate(self.counts, initial=0))
        self.deleted = frozenset(deleted)

    @property
    def rows(self) -> int:
        """How many rows there are, the deleted ones too."""
        return self._firsts[-1]

    def __len__(self) -> int:
        return self.rows - len(self.deleted)

    def __getitem__(self, row: int) -> Document:
        segment = bisect_right(self._firsts, row) - 1
        start, end = (int(self._offsets[segment][row - self._firsts[segment] + at]) for at in (0, 1))
        with open(self._folders[segment] / LINES, "rb") as lines:
            lines.seek(start)
            return Document(**json.loads(lines.read(end - start)))

    def __iter__(self) -> Iterator[Document]:
        for line in self._lines():
            yield Document(**json.loads(line))

    def copy(self, folder: Path) -> None:
        """Write the documents that are left into `folder`, as `write_documents` would have."""
        offsets = array("q", [0])
        with open(folder / LINES, "wb") as lines:
            for line in self._lines():
                lines.write(line)
                offsets.append(offsets[-1] + len(line))
        np.save(folder / OFFSETS, np.frombuffer(offsets, dtype=np.int64))
        (folder / IDS).write_text(json.dumps([name for name in self.ids if name]), encoding="utf-8")

    def _lines(self) -> Iterator[bytes]:
        for folder, first in zip(self._folders, self._firsts, strict=False):
            with open(folder / LINES, "rb") as lines:
                yield from (line for row, line in enumerate(lines, start=first) if row not in self.deleted)

    @cached_property
    def ids(self) -> list[str]:
        """Every document's id, by row; "" (which no document may have) where the document was deleted."""
        ids: list[str] = []
        for folder in self._folders:
            ids.extend(json.loads((folder / IDS).read_text(encoding="utf-8")))
        for row in self.deleted:
            ids[row] = ""
        return ids

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of every document that is left, by id."""
        return {name: row for row, name in enumerate(self.ids) if name}
