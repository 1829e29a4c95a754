"""The documents inside an index: one JSON line each, found by row number without reading the others."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
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


def write_documents(folder: Path, documents: Iterable[Document]) -> Written:
    """Write `documents` into `folder` in one pass; those without any text are left out and counted.

    Raises UserError when nothing is left and when an id comes twice (a judgement for it would mean two documents).
    """
    seen: dict[str, None] = {}
    offsets, empty = array("q", [0]), 0
    with open(folder / LINES, "wb") as lines:
        for document in documents:
            if not document.content:
                empty += 1
                continue
            if document.id in seen:
                raise UserError(f"Two documents have the id {document.id!r}: ids must be unique.")
            seen[document.id] = None
            # A lone surrogate is legal in a JSON string and in no encoding; ASCII escapes carry it through unharmed.
            line = json.dumps(document._asdict()).encode("ascii") + b"\n"
            lines.write(line)
            offsets.append(offsets[-1] + len(line))
    if not seen:
        found = f"{empty} documents, all without text" if empty else "no documents"
        raise UserError(f"The corpus is empty: {found}.")
    np.save(folder / OFFSETS, np.frombuffer(offsets, dtype=np.int64))
    (folder / IDS).write_text(json.dumps(list(seen)), encoding="utf-8")
    return Written(len(seen), empty)


class DocumentStore:
    """Read access to written documents by row."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets = np.load(folder / OFFSETS, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Document:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        with open(self._folder / LINES, "rb") as lines:
            lines.seek(start)
            return Document(**json.loads(lines.read(end - start)))

    def __iter__(self) -> Iterator[Document]:
        with open(self._folder / LINES, "rb") as lines:
            for line in lines:
                yield Document(**json.loads(line))

    @cached_property
    def ids(self) -> list[str]:
        """Every document's id, by row."""
        ids: list[str] = json.loads((self._folder / IDS).read_text(encoding="utf-8"))
        return ids
