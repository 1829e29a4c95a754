"""What an index is made of: texts, or pictures where the encoder reads those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sslnlp.search.documents import Columns, data_fingerprint, read_documents, unread_tables
from sslnlp.search.resume import Say, Work
from sslnlp.search.store import DocumentStore, write_documents

Progress = Callable[[str, int, int], None]
"""Called with (stage, things done since the last call, things in all)."""


class Source(Protocol):
    """Documents on their way into a segment: written first, then read once more by the encoder.

    `block` is how many of them the encoder is handed at a time, None for its usual number.
    """

    block: int | None

    @property
    def captioned(self) -> bool:
        """Whether there is any text."""
        ...

    def fingerprint(self) -> str:
        """Another one where the documents may be others."""
        ...

    def write(self, folder: Path, progress: Progress, say: Say) -> dict[str, Any]:
        """Write the documents into `folder`. Returns JSON-able facts: `count`, `empty` (left out for want of text),
        of pictures `broken` (reason -> how many are left out), and what `contents` needs to know."""
        ...

    def contents(self, folder: Path, facts: Mapping[str, Any], start: int) -> Iterator[Any]:
        """What the encoder reads of each written document from row `start` on."""
        ...


class Texts:
    """The texts at `data`."""

    block: int | None = None
    captioned = True

    def __init__(self, data: str | Path, columns: Columns) -> None:
        self._data, self._columns = data, columns

    def fingerprint(self) -> str:
        return data_fingerprint(self._data)

    def write(self, folder: Path, progress: Progress, say: Say) -> dict[str, Any]:
        written = write_documents(folder, read_documents(self._data, self._columns))
        if tables := unread_tables(self._data):
            more = f" and {len(tables) - 1:,} more" if len(tables) > 1 else ""
            say(f"{self._data} was read as a folder of texts; tables in it were not: {tables[0]}{more}")
        return {"count": written.documents, "empty": written.empty}

    def contents(self, folder: Path, facts: Mapping[str, Any], start: int) -> Iterator[str]:
        return islice((document.content for document in DocumentStore([folder])), start, None)


def open_source(data: str | Path, columns: Columns, encoder: Any) -> Source:
    """The documents at `data`, of the kind that `encoder` (None for BM25 alone) reads."""
    if encoder is None or encoder.reads == "texts":
        return Texts(data, columns)
    from sslnlp.search.pictures import PictureSource

    return PictureSource(data, columns)


def read(work: Work, source: Source, progress: Progress, say: Say) -> dict[str, Any]:
    """Write what is in `source` into the folder of `work`, unless that was done; what there is to say about it."""
    if "documents" not in work.done:
        work.finish("documents", source.write(work.folder, progress, say))
    facts: dict[str, Any] = work.done["documents"]
    return {name: facts[name] for name in ("count", "empty", "broken") if name in facts}
