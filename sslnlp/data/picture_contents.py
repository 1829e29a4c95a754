"""The bytes of pictures, read where they lie when they are asked for: in files, in tables, in tar shards.

Reading opens what it needs and closes it again, so all of it can be sent to worker processes and used from threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np

from sslnlp.arrays import Ints
from sslnlp.pictures import BrokenPicture

MISSING = "missing"
_SHOWN = 200


class Contents(Protocol):
    """Pictures by index, as bytes."""

    @property
    def fingerprint(self) -> str:
        """Another one when a picture may have changed; found without reading any."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person would look for."""
        ...

    def read(self, index: Ints) -> list[bytes]:
        """The bytes of some of them. Raises `BrokenPicture` (`missing`) when one is not there."""
        ...


class FileContents:
    """Files, by their names below `root` (or from `/`).

    Args:
        root: the folder that names are relative to.
        names: an Arrow array of strings, which takes less memory than a list.
    """

    def __init__(self, root: Path, names: Any) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        return stamped(self.root / name for name in self.names.to_pylist())

    def name(self, index: int) -> str:
        return str(self.root / self.names[index].as_py())

    def read(self, index: Ints) -> list[bytes]:
        return [_file(self.root / name) for name in self.names.take(index).to_pylist()]


class TableContents:
    """A column of a memory-mapped table: bytes, or `{"bytes", "path"}` as `datasets` stores pictures.

    Args:
        table: with a column of pictures that `datasets` is not asked to decode.
        column: its name.
        fingerprint: of the table.
        root: the folder that the paths of pictures that are not in the table are relative to.
    """

    def __init__(self, table: datasets.Dataset, column: str, fingerprint: str, root: Path) -> None:
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        self.table, self.column, self.root = table.select_columns([column]), column, root
        self.fingerprint = f"{fingerprint}/{column}"

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        value = self.table[index][self.column]
        path = value.get("path") if isinstance(value, dict) else None
        return f"row {index}" + (f" ({path})" if path else "")

    def read(self, index: Ints) -> list[bytes]:
        return [self._bytes(value) for value in self.table[index.tolist()][self.column]]

    def _bytes(self, value: Any) -> bytes:
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is None and path:
            return _file(self.root / path)
        if content is None:
            raise BrokenPicture(MISSING)
        return bytes(content)


class TarContents:
    """Members of one tar file, found by where they begin and how long they are."""

    def __init__(self, path: Path, keys: Any, start_N: Ints, length_N: Ints) -> None:
        self.path, self.keys, self.start_N, self.length_N = path, keys, start_N, length_N

    def __len__(self) -> int:
        return len(self.start_N)

    @property
    def fingerprint(self) -> str:
        return stamped([self.path])

    def name(self, index: int) -> str:
        return f"{self.path}:{self.keys[index].as_py()}"

    def read(self, index: Ints) -> list[bytes]:
        try:
            with self.path.open("rb") as file:
                found = []
                for start, length in zip(self.start_N[index].tolist(), self.length_N[index].tolist(), strict=True):
                    file.seek(start)
                    found.append(file.read(length))
                return found
        except OSError:
            raise BrokenPicture(MISSING) from None


class JoinedContents:
    """The pictures of several places, one behind the other."""

    def __init__(self, parts: Sequence[Contents]) -> None:
        self.parts = list(parts)
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b("\n".join(part.fingerprint for part in self.parts).encode(), digest_size=12).hexdigest()

    def name(self, index: int) -> str:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part].name(index - int(self._starts[part]))

    def read(self, index: Ints) -> list[bytes]:
        part_N = np.searchsorted(self._starts, index, side="right") - 1
        found = [b""] * len(index)
        for part in np.unique(part_N).tolist():
            places = np.flatnonzero(part_N == part)
            contents = self.parts[part].read(index[places] - self._starts[part])
            for place, content in zip(places.tolist(), contents, strict=True):
                found[place] = content
        return found


def in_short(name: str) -> str:
    """A name as a message holds it: pictures that stand in a column as text (base64) would fill the screen."""
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."


def stamped(paths: Any) -> str:
    """Hex digest of paths, sizes and times of change: reading the files would take as long as looking at them all."""
    digest = hashlib.blake2b(digest_size=12)
    for path in paths:
        try:
            status = path.stat()
            what = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:
            what = f"{path.absolute()}\0{MISSING}\n"
        digest.update(what.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError):  # ValueError: a name with a NUL in it
        raise BrokenPicture(MISSING) from None
