"""What a spec stands for: files, globs and folders of the kinds we read, or a hub name."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sslnlp.errors import UserError
from sslnlp.text_files import COMPRESSED

LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
# Names of files and subfolders by which a folder says what belongs to which split, as hub data sets do.
_SPLITS = {
    "train": re.compile(r"train(ing)?([-_.\d]|$)", re.I),
    "validation": re.compile(r"(valid(ation)?|val|dev)([-_.\d]|$)", re.I),
    "test": re.compile(r"(test|eval)([-_.\d]|$)", re.I),
}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What `datasets` writes beside its tables: facts in JSON, which are no rows.
_SAVED = ("dataset_dict.json", "dataset_info.json")


def kind(path: Path) -> str:
    """The extension that says how to read a file, `""` if none of ours: `.jsonl` for `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in LOADERS else ""


def find_files(spec: str, split: str) -> list[Path] | None:
    """The files a spec stands for, None for a hub name."""
    path = Path(spec).expanduser()
    return _folder(path, split) if path.is_dir() else look_up(spec)


def check_there(*specs: str | Sequence[str] | None) -> None:
    """Refuse paths and globs that nothing is at, and empty files of the kinds we read (`_check_size`)."""
    for spec in specs:
        found = [look_up(one) for one in ([spec] if isinstance(spec, str) else spec or ())]
        several = sum(1 if paths is None else len(paths) for paths in found) > 1
        for path in (path for paths in found for path in paths or ()):
            if kind(path) and path.is_file():
                _check_size(path, several)


def look_up(spec: str) -> list[Path] | None:
    """The files, or the folder, that a spec names; None for a hub name. `UserError` for what is not there."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return [path]
    if path.exists():
        if not os.access(path, os.R_OK):
            raise UserError(f"{spec} cannot be read: permission denied")
        return [path]
    if spec.startswith("[") and spec.endswith("]"):
        raise UserError(f'{spec} is not written as a list is: give a.txt,b.txt or, in quotes, \'["a.txt","b.txt"]\'')
    if glob.has_magic(spec):
        matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not matched:
            raise UserError(f"nothing matches {spec!r}; quote the pattern and check the folder")
        return matched
    if _SCHEME.match(spec):
        raise UserError(f"{spec}: addresses are not read; download the file, or give a hub name such as owner/name")
    if kind(path) or not _HUB.fullmatch(spec) or path.suffix in COMPRESSED:
        raise UserError(f"{spec} does not exist; check the path of the data")
    return None


def _folder(path: Path, split: str) -> list[Path]:
    if any((path / name).is_file() for name in _SAVED) and any(path.rglob("*.arrow")):
        raise UserError(
            f"the folder {path} was written by save_to_disk, which is not read as text; write each split of it as a "
            "file, e.g. datasets.load_from_disk(FOLDER).to_parquet('texts.parquet')"
        )
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and kind(file) and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise UserError(f"the folder {path} holds no {' '.join(LOADERS)} files (also compressed)")
    splits = [_split(file.relative_to(path)) for file in found]
    named = {name: [file for file, its in zip(found, splits, strict=True) if its == name] for name in _SPLITS}
    if named["train"] and sum(map(len, named.values())) > len(named["train"]):
        if not named.get(split):
            raise UserError(f"the folder {path} holds train files but no {split} files; name the file itself")
        found = named[split]
    kinds = sorted({kind(file) for file in found})
    if len(kinds) > 1:
        example = f"'{path}/**/*{kinds[0]}'"
        raise UserError(f"the folder {path} mixes {', '.join(kinds)} files; name one kind, e.g. {example}")
    return found


def _split(file: Path) -> str | None:
    """The split that a file belongs to by the folder it lies in (`train/a.txt`), else by its own name (`train.txt`)."""
    names = (file.parts[0], file.name)
    return next((split for name in names for split, pattern in _SPLITS.items() if pattern.match(name)), None)


def checked_kind(path: Path, several: bool = False) -> str:
    """The extension. `UserError` for another one than ours, and for an empty file (`_check_size`)."""
    extension = kind(path)
    if not extension:
        known = f"{' '.join(LOADERS)}, also with {' '.join(COMPRESSED)}"
        raise UserError(f"{path}: unknown kind of file; the kinds read are {known}")
    _check_size(path, several)
    return extension


def _check_size(path: Path, several: bool) -> None:
    """Refuse an empty file, but no `.txt` that is one of `several`: that is an empty document."""
    if path.stat().st_size == 0 and not (several and kind(path) == ".txt"):
        raise UserError(f"{path} is empty")
