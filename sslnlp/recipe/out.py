"""The folder of a run: one run in it at a time, and whether it can go there."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError
from sslnlp.locks import Held, exclusive
from sslnlp.recipe.load import read_biography
from sslnlp.recipe.schema import Recipe, flat, to_dict

FREE_ON_RESUME = {
    *("out", "name", "data.cache", "tokenizer.memory_mb", "train.workers", "train.batch_size", "train.accumulate"),
    *("train.log_every", "train.save_every", "train.keep", "train.trackers"),
}
"""Keys that may differ between a run and its continuation: the rows of an update are kept, so no weight changes."""

_OF_DATA = ("fingerprint", "valid_fingerprint", "rows", "valid_rows", "unlabelled_rows")
"""What tells the data of a run from others, where it was written down; a table's fingerprint is that of `data.train`
alone."""


@contextlib.contextmanager
def sole(out: Path, shown: str, *, main: bool) -> Iterator[None]:
    """Hold the folder of a run, which need not be there yet, for the processes launched together: two runs would write
    over each other's checkpoints.

    Raises `Held`, on all of them, when another run holds it. Where no lock can be made (a folder that cannot be
    written, a file system without locks) it is done without; the checks of `out` say what is wrong with it.
    """
    from sslnlp.distributed import broadcast_number  # brings torch, without which a folder is looked at

    lock, doing = _lock(out), f"training in {shown}"
    with contextlib.ExitStack() as stack:
        holder = -1.0
        if main:
            try:
                stack.enter_context(_folder(lock.parent))
                stack.enter_context(exclusive(lock, doing))
            except Held as held:
                holder = held.pid
            except OSError:
                pass
        if (holder := broadcast_number(holder)) >= 0:
            raise Held(int(holder), doing)
        yield


def _lock(out: Path) -> Path:
    place = out.resolve()
    return place.parent / f".{place.name}.lock"  # beside it: `out` appears whole


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder, with those above it; those that were made and stay empty go again."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def check_beforehand(recipe: Recipe, *, resume: bool) -> None:
    """`check_place`, for who has not imported torch yet. A folder that another process may train in is left to `sole`,
    which says so, and what a run with a stage before it (`adapt.*`) resumes to the run."""
    out = Path(recipe.out).expanduser()
    if not _lock(out).exists() and not (resume and recipe.adapt.steps):
        check_place(recipe.out, resume=resume)


def check_place(shown: str, *, resume: bool) -> None:
    """Refuse an `out` that cannot be written, holds a run or other files, or (with `resume`) holds no run."""
    out = Path(shown).expanduser()
    if not out.name:
        raise UserError(f"out={shown} names no folder of its own for the run: give one, as out=out/bert")
    run, taken = (out / "recipe.json").is_file(), out.is_dir() and any(out.iterdir())
    if resume and not run:
        if taken:
            raise UserError(f"nothing to resume: {shown} holds other files and no run; choose another out")
        moved = "if it was moved, give its place as out=..."
        raise UserError(f"nothing to resume: {shown} holds no run; {moved}; leave --resume out to start one")
    if run and not resume:
        raise UserError(f"{shown} already holds a run: choose another out, add --resume to go on, or delete it")
    if taken and not run:
        raise UserError(f"{shown} already holds other files, which a run does not go among: choose another out")
    _check_writable(out, shown)


def check_out(recipe: Recipe, *, resume: bool) -> None:
    """`check_place`, and with `resume` that the run there is one of this recipe, which is resolved."""
    check_place(recipe.out, resume=resume)
    if resume:
        _check_same(recipe, read_biography(Path(recipe.out).expanduser() / "recipe.json")["recipe"])


def check_data(recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with other data than the run began with: rows, held-out rows and labels would be others, and
    nobody would see it. `facts` are what the preparation counted now."""
    before = read_biography(Path(recipe.out).expanduser() / "recipe.json").get("data", {})
    if any(name in before and facts.get(name) != before[name] for name in _OF_DATA):
        raise UserError(
            f"the data changed since the run in {recipe.out} began: bring the former files back, or choose another out"
        )


def _check_writable(out: Path, shown: str) -> None:
    """Try it with a file in the nearest folder that exists: permission bits do not tell (root, read-only disks)."""
    nearest = out
    while not nearest.exists():
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"cannot write to out={shown}: {error.strerror or error}; choose another out=...") from error


def _check_same(recipe: Recipe, before: dict[str, Any]) -> None:
    now = flat(to_dict(recipe))
    then = flat(before)
    # Rows of like length are sorted into batches, so there the size of a batch decides what is in it.
    free = FREE_ON_RESUME - ({"train.batch_size"} if recipe.data.packing == "bucket" else set())
    changed = sorted(key for key in now.keys() | then.keys() if key not in free and now.get(key) != then.get(key))
    # But for options, every key is written, so one that is not there came with a later version.
    new = [key for key in changed if key not in then and not key.startswith(("objective.", "collator."))]
    if new:
        raise UserError(
            f"{recipe.out} holds a run of an older sslnlp, which knew no {', '.join(new[:4])}: finish it with that "
            "version, or choose another out"
        )
    if changed:
        shown = ", ".join(f"{key} ({then.get(key)} -> {now.get(key)})" for key in changed[:4])
        raise UserError(f"{recipe.out} holds a run of another recipe: {shown}; resume that one, or choose another out")
