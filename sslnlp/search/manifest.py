"""The index's one commit point: `index.json`, which names every file with its size and SHA-256.

    INDEX/index.json              replaced atomically; what it does not name does not belong to the index
    INDEX/segment-1f3a9c02d4e5/   documents that came together, with their postings and vectors: written once
    INDEX/table-77c0b1a2e3f4/     what depends on the whole collection: BM25's score table, the deleted rows, the
                                  map behind that of the encoder
    INDEX/lock                    there while a process writes

A killed writer leaves the former index.json, and with it the former index, untouched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sslnlp.errors import UserError
from sslnlp.locks import exclusive
from sslnlp.writing import fsync, sha256_of, why

T = TypeVar("T")

NAME = "index.json"
LOCK = "lock"
FORMAT = 2
WORK = "work.json"
"""What an unfinished segment has reached; it stays beside the files and is no part of the index."""
_FOLDERS = ("segment-", "table-", "generation-")  # the last is what format 1 wrote


def digest_of(facts: Any) -> str:
    """One SHA-256 for anything that JSON can say."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """The right to write into the index at `out`, alone. A failed write (disk full) becomes one line.

    Raises UserError, before anything is written, when `out` is something other than an index or an empty folder, or
    when another process is writing to it. A folder left empty goes again.
    """
    if out.exists():
        strangers = [] if not out.is_dir() else [p.name for p in out.iterdir() if not _ours(p)]
        if not out.is_dir() or strangers:
            what = f"holds {strangers[0]!r} and is no index" if strangers else "is a file"
            raise UserError(f"cannot write an index to {out}: it {what}; choose a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with exclusive(out / LOCK, f"writing to the index at {out}"):
            yield
    except OSError as error:
        raise UserError(f"writing the index to {out} failed: {why(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()  # only goes when nothing is in it


def commit(out: Path, facts: Mapping[str, Any], folders: Sequence[Path], former: Mapping[str, Any] | None) -> None:
    """Make `folders` the index at `out`: fsync their files, replace index.json, drop every other folder of ours.

    Folders that the `former` content names already are neither read nor flushed again: segments never change.
    """
    listed: dict[str, Any] = {}
    for folder in folders:
        inside = folder.name + "/"
        known = {name: fact for name, fact in former["files"].items() if name.startswith(inside)} if former else {}
        listed |= known or _flushed(folder)
    content = {"format": FORMAT, **facts, "files": listed}
    write_json(out / NAME, {**content, "seal": digest_of(content)})
    drop_others(out, folders)
    for folder in folders:
        (folder / WORK).unlink(missing_ok=True)


def _flushed(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != WORK)
    for path in [*files, folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        fsync(path)
    return {
        f"{folder.name}/{p.relative_to(folder).as_posix()}": {"bytes": p.stat().st_size, "sha256": sha256_of(p)}
        for p in files
    }


def drop_others(out: Path, folders: Sequence[Path]) -> None:
    """Remove every folder of ours in `out` but `folders`."""
    for old in out.iterdir():
        if old.name.startswith(_FOLDERS) and old not in folders:
            shutil.rmtree(old, ignore_errors=True)


def read(out: Path, *, verify: bool = True) -> dict[str, Any]:
    """What `index.json` at `out` says, held against the files.

    Sizes are always compared; `verify` also compares every SHA-256 (about a second per gigabyte). Raises UserError for
    a folder without an index and for a broken one.
    """
    while True:
        if not (out / NAME).is_file():
            raise UserError(f"no index at {out} (no {NAME}); make one with: sslnlp search index DATA --out {out}")
        text = (out / NAME).read_bytes()
        try:
            return _checked(out, text, verify)
        except UserError:
            if (out / NAME).read_bytes() == text:  # else a writer committed meanwhile, and took the old files away
                raise


def documents_in(out: Path) -> int | None:
    """How many an index at `out` holds; None where there is none that can be opened."""
    with contextlib.suppress(UserError):
        return int(read(out, verify=False)["documents"]["count"])
    return None


def steady(out: Path, answer: Callable[[], T]) -> T:
    """`answer()`, which opens and reads the index at `out`; once more where a writer took files away in between."""
    while True:
        before = (out / NAME).read_bytes() if (out / NAME).is_file() else b""
        try:
            return answer()
        except OSError:
            if not (out / NAME).is_file() or (out / NAME).read_bytes() == before:
                raise


def _checked(out: Path, text: bytes, verify: bool) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(text)
        seal = content.pop("seal")
    except (ValueError, KeyError, AttributeError) as error:
        raise _broken(out, f"{NAME} is damaged") from error
    if seal != digest_of(content):
        raise _broken(out, f"{NAME} was changed after it was written")
    if content["format"] != FORMAT:
        raise _broken(out, f"it has format {content['format']}, this version reads {FORMAT}")
    for name, fact in content["files"].items():
        path = out / name
        if not path.is_file():
            raise _broken(out, f"{name} is missing")
        if path.stat().st_size != fact["bytes"]:
            raise _broken(out, f"{name} has {path.stat().st_size} bytes instead of {fact['bytes']}")
        if verify and sha256_of(path) != fact["sha256"]:
            raise _broken(out, f"{name} does not match its checksum")
    return content


def write_json(path: Path, content: Any) -> None:
    """Replace the file at `path` in one step, safe against a power cut."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    fsync(aside)
    os.replace(aside, path)
    fsync(path.parent)


def _broken(out: Path, why: str) -> UserError:
    return UserError(f"the index at {out} is broken: {why}; make it again with: sslnlp search index DATA --out {out}")


def _ours(path: Path) -> bool:
    return path.name == LOCK or path.name.startswith((*_FOLDERS, NAME))
