"""Files that appear whole or not at all, never in place of what is read; and what tells that they stayed whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from sslnlp.errors import UserError
from sslnlp.locks import locked


def check_output(path: str | Path, *inputs: str | Path | None) -> None:
    """Raises UserError where `path` is a folder, a device, or one of `inputs` (a file in one), by whatever link."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a device would be replaced by a file
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise UserError(f"cannot write {path}: it is {what}; name a file")
    for known in (Path(given) for given in inputs if given is not None):
        if not (path.exists() and known.exists()):
            continue
        if path.samefile(known):
            raise UserError(f"{path} is what is to be read: name another file to write to")
        if known.is_dir() and path.resolve().is_relative_to(known.resolve()):
            raise UserError(f"{path} lies in {known}, which is to be read: name a file elsewhere to write to")


def check_new(path: str | Path, overwrite: bool) -> None:
    """Raises UserError where `path` is a file already, and is not to be overwritten."""
    if Path(path).is_file() and not overwrite:
        raise UserError(f"{path} is there already: name another file, or add --overwrite")


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An error of the disk while `path` is written is one line that names it, and says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space and run the same again" if full else "name a place that can be written"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {advice}") from error


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# As `tokenizers` and safetensors, numpy, and `datasets` say it.
_NO_ROOM_WORDS = (*(f"(os error {number})" for number in _NO_ROOM), " requested and ", "Not enough disk space")


@contextlib.contextmanager
def room_in(folder: str | Path) -> Iterator[None]:
    """A disk that is full while files go into `folder` is one line that names it. Other errors of the system are left
    as they are: they may be of what is read meanwhile."""
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None and not _says_no_room(found):
            found = found.__cause__  # `datasets` puts an error of its own around it
        if found is None:
            raise
        raise UserError(f"cannot write to {folder}: no space is left; free some and run the same again") from error


def _says_no_room(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_ROOM
    return any(words in str(error) for words in _NO_ROOM_WORDS)


def why(error: OSError) -> str:
    """Why something was not written, in the system's words."""
    return error.strerror or ("no space is left" if _says_no_room(error) else str(error))


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """A text file to write beside `path`, which takes its place at the end; taken away again if the body raises.

    Raises `Held` while another process writes one for the same `path`: they would write into each other's.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    with naming(path), contextlib.ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # a file system without locks; what else is wrong, opening it says
            stack.enter_context(locked(aside, f"writing {path}"))
        try:
            with open(aside, "w", encoding="utf-8") as file:
                yield file
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise


def write_json(path: str | Path, content: Any) -> None:
    """`content` as readable JSON, whole or not at all."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A line of JSON for each of `rows`, all or none."""
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def fsync(path: Path) -> None:
    """Make a file, or the names inside a folder, durable. Windows cannot open folders, and its rename needs no such
    step."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The file's SHA-256, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
