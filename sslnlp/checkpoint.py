"""Checkpoints that survive a kill, a full disk and a flipped bit.

    state/step-00000100/   model.pt optimizer.pt ...   one file per part
                           meta.json                   small facts, readable
                           MANIFEST.json               sha256 and size of every file above

A checkpoint is written into a hidden folder beside its place, every file is flushed to the disk, and one rename makes
it visible: it is there whole or not at all. What is read back is compared with the manifest first, so a truncated or
damaged newest checkpoint costs the steps since the one before it, never the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from sslnlp.errors import UserError
from sslnlp.writing import fsync, sha256_of

logger = logging.getLogger(__name__)

_MANIFEST = "MANIFEST.json"
_META = "meta.json"
_ASIDE = ".unfinished-"
_NAME = re.compile(r"step-(\d{8,})(?:-r(\d+))?")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class _HashingFile:
    """A binary file that hashes what passes through it, and keeps the first `OSError`.

    `torch.save` writes front to back, so one pass is enough; but it reports a failed write as a `RuntimeError`
    about its own archive, which hides the reason (no space left) that the user needs to read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            self._file.write(view)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self._hash.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.failure = self.failure or error
            raise

    def entry(self) -> dict[str, Any]:
        return {"sha256": self._hash.hexdigest(), "bytes": self.size}


def place_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return directory / f"step-{step:08d}"


def save_checkpoint(directory: Path, step: int, payload: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
    """Write one checkpoint and return its folder, `directory/step-<step>`. One process writes at a time.

    `payload` maps part names to anything `torch.load(weights_only=True)` reads back (state dicts, tensors, plain
    containers of numbers and strings); each part becomes one file. `meta` is JSON. Left-overs of a killed save are
    removed first. Saving a step that is there already leaves the older copy in place until the new one is whole.

    Raises `UserError` when the folder cannot be written (full disk, no permission): the half-written folder is gone
    by then and the earlier checkpoints are untouched. Raises `ValueError` for a part that could not be loaded again.
    """
    directory = Path(directory)
    for name in payload:
        if not _PART.fullmatch(name):
            raise ValueError(f"checkpoint part {name!r} is not a plain file name")
    text = json.dumps(dict(meta), indent=2, allow_nan=True).encode()
    aside = directory / f"{_ASIDE}step-{step:08d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clean(directory)
        place = _free_name(directory, step)
        aside.mkdir()
        files = {f"{name}.pt": _write_part(aside / f"{name}.pt", part) for name, part in payload.items()}
        files[_META] = _write_bytes(aside / _META, text)
        manifest = {"format": 1, "step": step, "files": files}
        _write_bytes(aside / _MANIFEST, json.dumps(manifest, indent=2).encode())
        fsync(aside)
        os.rename(aside, place)
        fsync(directory)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot save the checkpoint of step {step} in {str(directory)!r}: {reason}; "
                "earlier checkpoints are intact: make room, or move the run and give its place as `out`; then resume"
            ) from error
        raise
    return _settle(directory, step)


def newest_valid(directory: Path) -> Path | None:
    """The newest checkpoint in `directory` whose every file has the size and hash its manifest promises, or None.

    Each newer one that is passed over is logged as a warning, one line, with the reason.
    """
    for path in reversed(_folders(Path(directory))):
        if (problem := _problem(path)) is None:
            return path
        logger.warning("passing over the checkpoint %s: %s", path.name, problem)
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint folder back: ({part name: part, tensors on the CPU}, meta).

    Verified against its manifest, and unpickled with `weights_only=True`: a checkpoint from elsewhere cannot run code.
    Raises `UserError` when it is not a checkpoint or is damaged.
    """
    path = Path(path)
    if (problem := _problem(path)) is not None:
        raise UserError(f"cannot resume from {str(path)!r}: {problem}")
    names = [name for name in json.loads((path / _MANIFEST).read_bytes())["files"] if name.endswith(".pt")]
    try:
        parts = {name[:-3]: torch.load(path / name, map_location="cpu", weights_only=True) for name in names}
    except pickle.UnpicklingError as error:
        raise UserError(f"cannot resume from {str(path)!r}: it holds more than numbers and containers") from error
    return parts, json.loads((path / _META).read_bytes())


def keep_last(directory: Path, n: int, protect: Path | None = None, *, newest: Path | None = None) -> None:
    """Remove checkpoints older than the `n` newest whole ones; `protect` (the best so far) always stays.

    Whole is judged by presence and size here (a hash of everything after every save would cost more than the save).
    A folder that fails this does not count towards `n`, so a damaged one never pushes out a good one; nor does one
    above `newest`, the checkpoint that a run goes on from: it was found damaged, and is removed. So is what a kill left
    of a checkpoint that was being removed.
    """
    if n < 1:
        raise ValueError(f"at least one checkpoint must be kept, got n={n}")
    kept = 0
    for path in Path(directory).glob(f"{_ASIDE}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in reversed(_folders(Path(directory))):
        above = newest is not None and _order(path) > _order(newest)
        if above or (kept >= n and (protect is None or path.resolve() != Path(protect).resolve())):
            _remove(path)
        elif _problem(path, hashes=False) is None:
            kept += 1


def _folders(directory: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()), key=_order)


def _order(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _free_name(directory: Path, step: int) -> Path:
    """`step-N`, or `step-N-r<k>` above every copy of this step: no moment without a good one under a visible name."""
    taken = [again for path in _folders(directory) for at, again in [_order(path)] if at == step]
    return directory / (f"step-{step:08d}-r{max(taken) + 1}" if taken else f"step-{step:08d}")


def _settle(directory: Path, step: int) -> Path:
    """Leave only the newest copy of `step`, under the plain name `step-N`, which is returned."""
    *older, newest = [path for path in _folders(directory) if _order(path)[0] == step]
    for path in older:
        _remove(path)
    plain = place_of(directory, step)
    if newest != plain and not plain.exists():
        os.rename(newest, plain)
    return plain


def _write_part(path: Path, part: Any) -> dict[str, Any]:
    with path.open("wb") as file:
        hashing = _HashingFile(file)
        try:
            torch.save(part, cast(BinaryIO, hashing))
        except Exception:
            if hashing.failure is not None:
                raise hashing.failure from None
            raise
        hashing.flush()
        os.fsync(file.fileno())
    try:
        # The meta device reads the pickle but no tensor bytes: a part that cannot come back is refused now,
        # not at the resume that needs it.
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint part {path.stem!r} holds what weights_only loading refuses: {error}") from error
    return hashing.entry()


def _write_bytes(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        hashing = _HashingFile(file)
        hashing.write(data)
        hashing.flush()
        os.fsync(file.fileno())
    return hashing.entry()


def _problem(path: Path, *, hashes: bool = True) -> str | None:
    """Why this folder is not a good checkpoint, in a few words; None when it is."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        files, step = dict(manifest["files"]), manifest["step"]
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it has no {_MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {_MANIFEST} cannot be read ({type(error).__name__})"
    named = _NAME.fullmatch(path.name)
    if _META not in expected or (named is not None and int(named[1]) != step):
        return f"its {_MANIFEST} does not describe this folder"
    for name, (size, sha256) in expected.items():
        try:
            if (found := (path / name).stat().st_size) != size:
                return f"{name} has {found} bytes instead of {size}"
            if hashes and sha256_of(path / name) != sha256:
                return f"{name} is damaged (its SHA-256 differs from the manifest)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _clean(directory: Path) -> None:
    """Remove what killed saves and removals left behind, and finish a replacement that was cut short."""
    for path in directory.glob(f"{_ASIDE}*"):
        shutil.rmtree(path)
    for path in _folders(directory):
        step, again = _order(path)
        if again:
            _settle(directory, step)


def _remove(path: Path) -> None:
    """Hide, then delete: a kill in between leaves no half checkpoint under a visible name. Never ends the run."""
    hidden = path.with_name(f"{_ASIDE}{path.name}-removed")
    try:
        os.rename(path, hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        logger.warning("cannot remove the old checkpoint %s: %s", path.name, error.strerror)
