"""Small pictures inside an index of pictures, so that it can show them wherever their source is.

thumbnails.bin    JPEG files, one after the other
thumbnails.npy    int64 [N + 1], where each begins, and where the last ends
"""

from __future__ import annotations

import io
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sslnlp.arrays import Bools

FILES, PLACES = "thumbnails.bin", "thumbnails.npy"
SIDE = 96
"""Pixels of the longer side, at most; a smaller picture stays as it is."""
QUALITY = 80
KIND = "image/jpeg"


def thumbnail(content: bytes) -> bytes:
    """The picture in the file `content` as a small JPEG. Raises `BrokenPicture` where it is none."""
    from sslnlp.pictures import REDUCING_GAP, decode  # it brings torch, which showing thumbnails does without

    image = Image.fromarray(decode(content, size=SIDE))
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, REDUCING_GAP)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


class ThumbnailWriter:
    """Writes the thumbnails of one segment, document by document; the list of places comes at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._places = folder, array("q", [0])
        self._file = open(folder / FILES, "wb")  # noqa: SIM115 (closed by __exit__)

    def add(self, small: bytes) -> None:
        self._file.write(small)
        self._places.append(self._places[-1] + len(small))

    def __enter__(self) -> ThumbnailWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()
        if error[0] is None:
            np.save(self._folder / PLACES, np.frombuffer(self._places, np.int64))


class Thumbnails:
    """Read access by row, over the segments in `folders` joined end to end."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._places = [np.load(folder / PLACES, mmap_mode="r") for folder in folders]
        self._firsts = list(accumulate((len(places) - 1 for places in self._places), initial=0))

    def __getitem__(self, row: int) -> bytes:
        segment = bisect_right(self._firsts, row) - 1
        start, end = (int(self._places[segment][row - self._firsts[segment] + at]) for at in (0, 1))
        with open(self._folders[segment] / FILES, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def copy(self, folder: Path, live: Sequence[Bools]) -> None:
        """Write those of the `live` rows of each segment into `folder`."""
        with ThumbnailWriter(folder) as writer:
            for row in np.flatnonzero(np.concatenate(live)).tolist():
                writer.add(self[row])
