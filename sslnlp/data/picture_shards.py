"""Tar shards as WebDataset writes them: files that share a name up to its first dot, one after the other, are one row.

A tar file is its members with headers between them, so that a picture can be read without what lies before it.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from sslnlp.data.picture_contents import TarContents
from sslnlp.errors import UserError

TEXTS = ("txt", "caption", "cls")
"""Members that hold one value as text; those of `json` hold several, by their keys."""


def open_shard(
    path: Path, image_files: tuple[str, ...], image: str | None
) -> tuple[TarContents, list[dict[str, Any]], list[str]]:
    """The pictures of a shard, a row of what else is known of each, and the names that occur in these rows.

    Args:
        path: an uncompressed tar file.
        image_files: the extensions of pictures, with their dots.
        image: the extension of the picture, where a row may have several; without its dot.

    Raises:
        UserError: a damaged file, text that is not UTF-8, a caption apart from its picture, no picture at all.
    """
    wanted = [f".{image}"] if image is not None else list(image_files)
    keys, starts, lengths, rows = [], [], [], []
    bare: set[str] = set()
    pictureless: set[str] = set()
    dotted = ""
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in groupby(_members(tar), lambda found: found[0]):
                row: dict[str, Any] = {"__key__": key}
                where: tuple[int, int] | None = None
                for _, extension, member in members:
                    if f".{extension}" in wanted:
                        where = where or (member.offset_data, member.size)
                    elif extension == "json" or extension in TEXTS:
                        row.update(_values(tar, member, extension, path))
                    elif f".{extension.rpartition('.')[2]}" in wanted:
                        dotted = dotted or f"; {member.name} has the extension {extension}: all behind the first dot"
                if where is not None:
                    keys.append(key)
                    starts.append(where[0])
                    lengths.append(where[1])
                    rows.append(row)
                if (where is None) == (len(row) > 1):  # a picture without a text, or a text without a picture
                    (pictureless if where is None else bare).add(key)
            _check_end(tar, path)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"cannot read {path} as a tar file: {error}; write or download it again") from None
    if apart := sorted(bare & pictureless):
        raise UserError(
            f"{path} holds the picture {apart[0]} and, apart from it, its text: members of one name must follow one "
            "another, as tar --sort=name writes a folder"
        )
    if not rows:
        raise UserError(f"{path} holds no pictures ({' '.join(wanted)}){dotted}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    contents = TarContents(path, pa.array(keys, pa.large_string()), np.array(starts), np.array(lengths))
    return contents, rows, names


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, extension in lower case, and member, of every file."""
    for member in tar:
        folder, name = posixpath.split(member.name)
        stem, _, extension = name.partition(".")
        if member.isreg() and stem:
            yield posixpath.join(folder, stem), extension.lower(), member


def _check_end(tar: tarfile.TarFile, path: Path) -> None:
    """`tarfile` takes a damaged header for the end, and would lose all that lies behind it without a word."""
    with path.open("rb") as file:
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {tar.offset:,}")


def _values(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, path: Path) -> dict[str, Any]:
    file = tar.extractfile(member)
    assert file is not None
    try:
        text = file.read().decode("utf-8-sig")
        if extension != "json":
            return {extension: text.strip()}
        value = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{member.name} in {path} is not {'JSON' if extension == 'json' else 'UTF-8'}: {error}"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f'{member.name} in {path} is not an object such as {{"caption": "..."}}')
    return value
