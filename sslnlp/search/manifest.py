"""The index's one commit point: `index.json`, which names every file with its size and SHA-256.

    INDEX/index.json              replaced atomically; what it does not name does not belong to the index
    INDEX/generation-1f3a9c02/    the files of one commit, written whole before index.json names them

A killed writer leaves the former index.json, and with it the former index, untouched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError

NAME = "index.json"
FORMAT = 1
_PREFIX = "generation-"


def sha256_of(path: Path) -> str:
    """The file's SHA-256, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def new_generation(out: Path) -> Iterator[Path]:
    """A fresh folder inside the index at `out` to write into; taken away again if the body raises.

    Raises UserError, before anything is written, when `out` is something other than an index or an empty folder.
    """
    if out.exists():
        strangers = [] if not out.is_dir() else [p.name for p in out.iterdir() if not _ours(p)]
        if not out.is_dir() or strangers:
            what = f"holds {strangers[0]!r} and is no index" if strangers else "is a file"
            raise UserError(f"Cannot write an index to {out}: it {what}. Choose a new folder.")
    folder = out / f"{_PREFIX}{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"Cannot write an index to {out}: {error.strerror}.") from error
    try:
        yield folder
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            out.rmdir()  # only goes when we made it and nothing else is in it
        if isinstance(error, OSError):
            raise UserError(f"Writing the index to {out} failed: {error.strerror or error}.") from error
        raise


def commit(out: Path, generation: Path, facts: Mapping[str, Any]) -> None:
    """Make `generation` the index at `out`: fsync its files, replace index.json, drop what was there before."""
    files = sorted(path for path in generation.rglob("*") if path.is_file())
    listed = {p.relative_to(generation).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files}
    for path in [*files, generation, *(p for p in generation.rglob("*") if p.is_dir())]:
        _fsync(path)
    content = {"format": FORMAT, "generation": generation.name, **facts, "files": listed}
    aside = out / f"{NAME}.tmp"
    aside.write_text(json.dumps({**content, "seal": _seal(content)}, indent=1), encoding="utf-8")
    _fsync(aside)
    os.replace(aside, out / NAME)
    _fsync(out)
    for old in out.iterdir():
        if old.name.startswith(_PREFIX) and old != generation:
            shutil.rmtree(old, ignore_errors=True)


def read(out: Path, *, verify: bool = True) -> tuple[dict[str, Any], Path]:
    """The manifest of the index at `out` and the folder of its files.

    Sizes are always compared; `verify` also compares every SHA-256 (about a second per gigabyte). Raises UserError for
    a folder without an index and for a broken one.
    """
    if not (out / NAME).is_file():
        raise UserError(f"No index at {out} (no {NAME}). Make one with: sslnlp search index DATA --out {out}")
    try:
        content = json.loads((out / NAME).read_text(encoding="utf-8"))
        seal = content.pop("seal")
    except (ValueError, KeyError, AttributeError) as error:
        raise _broken(out, f"{NAME} is damaged") from error
    if seal != _seal(content):
        raise _broken(out, f"{NAME} was changed after it was written")
    if content["format"] != FORMAT:
        raise _broken(out, f"it has format {content['format']}, this version reads {FORMAT}")
    folder = out / content["generation"]
    for name, fact in content["files"].items():
        path = folder / name
        if not path.is_file():
            raise _broken(out, f"{name} is missing")
        if path.stat().st_size != fact["bytes"]:
            raise _broken(out, f"{name} has {path.stat().st_size} bytes instead of {fact['bytes']}")
        if verify and sha256_of(path) != fact["sha256"]:
            raise _broken(out, f"{name} does not match its checksum")
    return content, folder


def _broken(out: Path, why: str) -> UserError:
    return UserError(f"The index at {out} is broken: {why}. Make it again with: sslnlp search index DATA --out {out}")


def _ours(path: Path) -> bool:
    return path.name.startswith((_PREFIX, NAME))


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
