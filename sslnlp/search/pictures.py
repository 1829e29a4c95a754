"""Pictures as documents: captions are the text, a thumbnail of each goes into the index, broken ones are counted."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sslnlp.data.config import OptionData, cache_at
from sslnlp.data.picture_columns import Pictures
from sslnlp.data.picture_contents import Contents, FileContents, JoinedContents, in_short
from sslnlp.data.picture_sources import open_pictures
from sslnlp.data.pictured import NAMED, PictureRows
from sslnlp.errors import UserError
from sslnlp.pictures import BrokenPicture
from sslnlp.search.documents import Columns, Document
from sslnlp.search.resume import Say
from sslnlp.search.sources import Progress
from sslnlp.search.store import write_documents
from sslnlp.search.thumbnails import ThumbnailWriter, thumbnail

_BLOCK = 32
"""Pictures in memory at once, which is what a killed run encodes again at most: 1,024 photographs are gigabytes."""
_RUN = 1024
_OPTIONS = {
    "columns.image": "--image-column",
    "columns.caption": "--text-column",
    "columns.id": "--id-column",
}
"""What names a column for a person who searches."""


class PictureSource:
    """The pictures at `data`, in any form that `sslnlp train clip_image_text` reads them.

    A document's id is that of the column of ids, else the name of its file (rows that name the same file are one
    picture with several captions), else the number of its row from 0. Its text are its captions, one a line.
    Raises UserError when nothing there can be read as pictures.
    """

    block: int | None = _BLOCK

    def __init__(self, data: str | Path, columns: Columns) -> None:
        if columns.title is not None:
            raise UserError("pictures have captions and no titles: leave out --title-column")
        named = {"image": columns.image, "caption": columns.text, "id": columns.id}
        wanted = {ours: theirs for ours, theirs in named.items() if theirs is not None}
        self._data = data
        try:
            asked = OptionData(train=str(data), columns=wanted, options=_OPTIONS)
            self._pictures = open_pictures(asked, "train", cache_at())
        except UserError as error:
            raise UserError(f"the encoder reads pictures: {error}") from error
        self._ids, self._rows = _documents(self._pictures)

    @property
    def captioned(self) -> bool:
        """Whether any picture has a caption."""
        return any(self._caption(at) for at in range(len(self._ids)))

    def fingerprint(self) -> str:
        """Of the places, sizes and times of change of the pictures, and of ids and captions."""
        digest = hashlib.blake2b(self._pictures.contents.fingerprint.encode(), digest_size=16)
        for at, name in enumerate(self._ids):
            digest.update(json.dumps([name, self._caption(at)]).encode())
        return digest.hexdigest()

    def write(self, folder: Path, progress: Progress, say: Say) -> dict[str, Any]:
        """Look at every picture once: documents and thumbnails of those that are good into `folder`.

        Raises UserError when none is good and when an id comes twice.
        """
        reasons: Counter[str] = Counter()
        left_out: list[int] = []

        def documents() -> Iterator[Document]:
            for at, found in enumerate(self._looked_at(progress)):
                if isinstance(found, bytes):
                    thumbnails.add(found)
                    yield Document(self._ids[at], "", self._caption(at))
                else:
                    left_out.append(at)
                    reasons[str(found)] += 1
                    if len(left_out) <= NAMED:
                        named.append(f"{in_short(self._pictures.contents.name(self._rows[at][0]))}: {found}")
            if len(left_out) == len(self._ids):
                raise UserError(f"no picture at {self._data} can be read: {'; '.join(named)}")

        named: list[str] = []
        with ThumbnailWriter(folder) as thumbnails:
            written = write_documents(folder, documents(), keep_empty=True)
        if left_out:
            more = "; ..." if len(left_out) > NAMED else ""
            say(f"{len(left_out):,} of {len(self._ids):,} pictures are broken: {'; '.join(named)}{more}")
        return {"count": written.documents, "empty": 0, "broken": dict(reasons.most_common()), "left_out": left_out}

    def contents(self, folder: Path, facts: Mapping[str, Any], start: int) -> Iterator[bytes]:
        """The bytes of each written picture from row `start` on. Raises UserError when one has gone meanwhile."""
        left_out = set(facts["left_out"])
        first = [rows[0] for at, rows in enumerate(self._rows) if at not in left_out]
        rows = PictureRows(self._pictures.contents, np.array(first, np.int64), None, None, {})
        for at in range(start, len(rows)):
            yield rows[at]["image"]

    def _looked_at(self, progress: Progress) -> Iterator[bytes | BrokenPicture]:
        """A thumbnail of each picture, or what is wrong with it; made by several threads."""
        count = len(self._ids)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            try:
                for start in range(0, count, _RUN):  # so many wait for the writer at most
                    run = range(start, min(start + _RUN, count))
                    for found in pool.map(self._look_at, run):
                        progress("pictures", 1, count)
                        yield found
            except BaseException:  # an interruption must not wait for pictures that nobody will ask for
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _look_at(self, at: int) -> bytes | BrokenPicture:
        try:
            return thumbnail(self._pictures.contents.read(np.array(self._rows[at][:1]))[0])
        except BrokenPicture as error:
            return error

    def _caption(self, at: int) -> str:
        if self._pictures.captions is None:
            return ""
        captions = chain.from_iterable(self._pictures.captions[row].as_py() for row in self._rows[at])
        return "\n".join(dict.fromkeys(caption.strip() for caption in captions))


def _documents(pictures: Pictures) -> tuple[list[str], list[list[int]]]:
    """The id of every document, and the rows that are it."""
    contents = pictures.contents
    if pictures.ids is not None:
        ids: list[str] = pictures.ids.to_pylist()
        if "" in ids:
            raise UserError(f"the picture {contents.name(ids.index(''))} has no id: every document needs one")
        return ids, [[row] for row in range(len(ids))]
    if (names := _names(contents)) is None:
        return [str(row) for row in range(len(contents))], [[row] for row in range(len(contents))]
    same: dict[tuple[str, str], list[int]] = {}
    for row, name in enumerate(names):  # two folders may hold a file of the same name: their rows are told apart here
        same.setdefault((name, contents.name(row) if name else str(row)), []).append(row)
    return [name or f"row {rows[0]}" for (name, _), rows in same.items()], list(same.values())


def _names(contents: Contents) -> list[str] | None:
    """The names of files, as the source states them; None where pictures are no files."""
    if isinstance(contents, FileContents):
        found: list[str] = contents.names.to_pylist()
        return found
    if isinstance(contents, JoinedContents):
        parts = [_names(part) for part in contents.parts]
        return None if any(part is None for part in parts) else [name for part in parts for name in part or ()]
    return None
