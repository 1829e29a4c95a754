"""A segment in the making, which a killed run leaves for the next one to finish.

`work.json` beside the files says for which work they are (a key over data, model, options and the index it started
from) and which stages are on disk. It is written after what it speaks of, so it may know too little, never too much.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError
from sslnlp.search import manifest
from sslnlp.search.manifest import WORK
from sslnlp.writing import fsync, why

Say = Callable[[str], None]
"""Called with one line that a person should see."""


class Work:
    """The folder of one segment and what is `done` in it: stage -> facts."""

    def __init__(self, folder: Path, key: str, done: dict[str, Any]) -> None:
        self.folder, self.key, self.done = folder, key, done

    def finish(self, stage: str, facts: Any, flush: bool = True) -> None:
        """Remember `facts` of a stage whose files are written; they are flushed first, unless they are already."""
        if flush:
            for path in (path for path in self.folder.rglob("*") if path.is_file()):
                fsync(path)
        self.done[stage] = facts
        manifest.write_json(self.folder / WORK, {"key": self.key, "done": self.done})


def take_up(out: Path, key: str, say: Say) -> Work:
    """The work of this `key` in the index at `out`: what a killed run left of it, or a fresh folder.

    Whatever other runs left behind is removed; `say` tells when that was work.
    """
    named, folder = _named(out), out / f"segment-{key[:12]}"
    strangers = [old for old in out.glob("segment-*") if old.name not in named and old != folder]
    for old in [*strangers, *(old for old in out.glob("table-*") if old.name not in named)]:
        if _done(old):
            say("An interrupted run left work for other data, another model, other options or a former index: dropped.")
        shutil.rmtree(old)
    done = _done(folder, key)
    if done:
        say(_resuming(done))
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    return Work(folder, key, done)


@contextlib.contextmanager
def kept_unless_wrong(work: Work) -> Iterator[None]:
    """Wrong input takes the work away again; an interruption or a failing disk leaves it for the next run."""
    try:
        yield
    except UserError:
        shutil.rmtree(work.folder, ignore_errors=True)
        raise
    except OSError as error:
        raise UserError(
            f"writing the index to {work.folder.parent} failed: {why(error)}; the index is as it was; the same command "
            "goes on from here"
        ) from error


def _done(folder: Path, key: str | None = None) -> dict[str, Any]:
    """The finished stages in a folder, none if it holds no work (of this key)."""
    try:
        work = json.loads((folder / WORK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return work["done"] if key in (None, work["key"]) else {}


def _named(out: Path) -> Collection[str]:
    """The folders that belong to the index at `out`, as far as its index.json can be read."""
    try:
        content = json.loads((out / manifest.NAME).read_text(encoding="utf-8"))
        return {content["table"], *(segment["name"] for segment in content["segments"])}
    except (OSError, ValueError, KeyError):
        return set()


def _resuming(done: dict[str, Any]) -> str:
    parts = [f"{done['documents']['count']:,} documents read{' and counted' if 'postings' in done else ''}"]
    parts += [f"{done[stage]:,} {what}" for stage, what in (("vectors", "encoded"), ("ann", "linked")) if stage in done]
    return f"Going on where a run was interrupted: {', '.join(parts)}."
