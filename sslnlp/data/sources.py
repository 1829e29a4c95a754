"""Where text comes from: files, globs, folders and hub data sets, read through `datasets`.

A spec is one string or a list of them. `open_source` settles what it means and refuses what cannot be read, in one
line; nothing is loaded before `documents()` or `table()` is called.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets

from sslnlp.data import text as plain
from sslnlp.errors import UserError, suggest

LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
# File names by which a folder says what belongs to which split, as hub data sets do.
_SPLITS = {
    "train": re.compile(r"train(ing)?([-_.\d]|$)", re.I),
    "validation": re.compile(r"(valid(ation)?|val|dev)([-_.\d]|$)", re.I),
    "test": re.compile(r"(test|eval)([-_.\d]|$)", re.I),
}
_SCHEMES = ("http://", "https://", "hf://", "s3://")


@contextmanager
def quiet() -> Iterator[None]:
    """`datasets` without its own bars and logs: the commands print their own."""
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def kind(path: Path) -> str:
    """The extension that says how to read a file, `""` if none of ours: `.jsonl` for `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in plain.COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in LOADERS else ""


@dataclass
class Source:
    """One or several specs of the same split. Files of one kind are read together.

    Raises (from every method that reads): `UserError`, naming the file and the place.
    """

    spec: str
    files: dict[str, list[Path]] = field(default_factory=dict)
    """Extension -> files, in the order given."""
    hub: list[str] = field(default_factory=list)
    split: str = "train"
    streaming: bool = False
    cache: str | None = None

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns (`["text"]` for `.txt`), those of the first row."""
        if not self.hub and set(self.files) == {".txt"}:
            return ["text"]
        for row in self.rows():
            return list(row)
        raise UserError(f"{self.spec} holds no rows")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the tables and hub data sets, one at a time; `.txt` files are not among them."""
        for extension, files in self.files.items():
            if extension != ".txt":
                yield from _stream_files(extension, files)
        for name in self.hub:
            with quiet():
                yield from _load_hub(name, self.split, self.streaming, self.cache)

    def documents(self, text: str | None = None, split_text: str = "auto") -> Iterator[str]:
        """The texts, in a fixed order, in bounded memory. A missing value is an empty text.

        Args:
            text: the column; None for the one obvious column.
            split_text: how `.txt` files become documents (see `DataConfig.split_text`).
        """
        if ".txt" in self.files:
            if text not in (None, "text"):
                raise UserError(f"data.text={text!r}: a .txt file has no columns; leave data.text out")
            yield from plain.documents(self.files[".txt"], split_text)
        if not self.hub and set(self.files) <= {".txt"}:
            return
        column: str | None = None
        for row in self.rows():
            if column is None:
                column = text_column(row, text, self.spec)
            value = row.get(column)
            if value is not None and not isinstance(value, (str, int, float)):
                raise UserError(f"column {column!r} of {self.spec} holds {type(value).__name__}, not text")
            yield "" if value is None else str(value)

    def table(self) -> datasets.Dataset:
        """All rows as one Arrow table on disk (memory-mapped); `.txt` lines or documents in a column `text`."""
        cache = str(Path(self.cache) / f"tables-{self.fingerprint[:16]}") if self.cache else None
        parts = []
        with quiet():
            for extension, files in self.files.items():
                for file in files if extension not in (".txt", ".parquet") else ():
                    for _ in plain.lines(file):
                        pass
                try:
                    if extension == ".txt":
                        made = {"text": list(plain.documents(files, "line" if len(files) == 1 else "auto"))}
                        parts.append(datasets.Dataset.from_dict(made))
                    else:
                        names = [str(file) for file in files]
                        options = _options(extension)
                        parts.append(datasets.load_dataset(
                            LOADERS[extension], data_files=names, split="train", cache_dir=cache, **options
                        ))
                except UserError:
                    raise
                except Exception as error:
                    raise _diagnose(extension, files, error) from None
            parts.extend(_load_hub(name, self.split, False, self.cache) for name in self.hub)
            try:
                table = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
            except ValueError as error:
                raise UserError(f"the files of {self.spec} have different columns: {_line(error)}") from None
        if len(table) == 0:
            raise UserError(f"{self.spec} holds no rows")
        return table

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the content: the bytes of every file, or the revision of a hub data set. Names do not count."""
        digest = hashlib.blake2b(digest_size=16)
        for extension, files in self.files.items():
            for file in files:
                digest.update(f"{extension}{file.stat().st_size}\n".encode())
                with file.open("rb") as handle:
                    while chunk := handle.read(1 << 20):
                        digest.update(chunk)
        for name in self.hub:
            digest.update(f"{name}@{_revision(name)}/{self.split}".encode())
        return digest.hexdigest()


def open_source(
    spec: str | Sequence[str], *, streaming: bool = False, split: str = "train", cache: str | None = None
) -> Source:
    """Settle what `spec` means.

    Args:
        spec: a file, glob, folder (recursive; one kind of file) or hub name (`name` or `name:config`), or a list.
        streaming: read hub data as a stream.
        split: of a hub data set; of a folder whose files are named after splits (`train.parquet`, `test.parquet`).
        cache: the folder in which `datasets` keeps tables.

    Raises:
        UserError: nothing there, nothing matched, an unknown extension, a folder of mixed kinds.
    """
    specs = [spec] if isinstance(spec, str) else [str(one) for one in spec]
    if not specs or not all(specs):
        raise UserError("no data was given: set data.train to a file, glob, folder or hub name")
    source = Source(", ".join(specs), split=split, streaming=streaming, cache=cache)
    for one in specs:
        found = _files(one, split)
        if found is None:
            source.hub.append(one)
        for path in found or ():
            source.files.setdefault(_checked_kind(path), []).append(path)
    return source


def text_column(row: dict[str, Any], wanted: str | None, spec: str) -> str:
    """The column of `row` that holds the text: the wanted one, `text`, or the only column of strings."""
    if wanted is not None:
        if wanted not in row:
            raise UserError(f"{spec} has no column {wanted!r} (data.text).{suggest(wanted, row)}")
        return wanted
    if "text" in row:
        return "text"
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if len(strings) != 1:
        raise UserError(f"which column of {spec} is the text? It has {', '.join(row)}; say data.text=NAME")
    return strings[0]


def _files(spec: str, split: str) -> list[Path] | None:
    """The files a spec stands for, None for a hub name."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return _folder(path, split)
    if path.exists():
        if not os.access(path, os.R_OK):
            raise UserError(f"{spec} cannot be read: permission denied")
        return [path]
    if glob.has_magic(spec):
        matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not matched:
            raise UserError(f"nothing matches {spec!r}; quote the pattern and check the folder")
        return matched
    if spec.startswith(_SCHEMES):
        raise UserError(f"{spec}: addresses are not read; download the file, or give a hub name such as owner/name")
    if kind(path) or not _HUB.fullmatch(spec) or path.suffix in plain.COMPRESSED:
        raise UserError(f"{spec} does not exist; check the path of the data")
    return None


def _folder(path: Path, split: str) -> list[Path]:
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and kind(file) and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise UserError(f"the folder {path} holds no {' '.join(LOADERS)} files (also compressed)")
    named = {name: [file for file in found if pattern.match(file.name)] for name, pattern in _SPLITS.items()}
    if named["train"] and sum(map(len, named.values())) > len(named["train"]):
        if not named.get(split):
            raise UserError(f"the folder {path} holds train files but no {split} files; name the file itself")
        found = named[split]
    kinds = sorted({kind(file) for file in found})
    if len(kinds) > 1:
        example = f"'{path}/**/*{kinds[0]}'"
        raise UserError(f"the folder {path} mixes {', '.join(kinds)} files; name one kind, e.g. {example}")
    return found


def _checked_kind(path: Path) -> str:
    extension = kind(path)
    if not extension:
        known = f"{' '.join(LOADERS)}, also with {' '.join(plain.COMPRESSED)}"
        raise UserError(f"{path}: unknown kind of file; the kinds read are {known}")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    return extension


def _options(extension: str) -> dict[str, Any]:
    # "NA" and "null" are words, not missing values.
    return {".tsv": {"sep": "\t", "keep_default_na": False}, ".csv": {"keep_default_na": False}}.get(extension, {})


def _stream_files(extension: str, files: list[Path]) -> Iterator[dict[str, Any]]:
    """Rows of files of one kind through a streamed `datasets` reader: nothing is copied, memory stays bounded."""
    for file in files if extension != ".parquet" else ():
        for _ in plain.lines(file):  # names the line of bad bytes, which the parsers do not
            pass
    names = [str(file) for file in files]
    try:
        with quiet():
            stream = datasets.load_dataset(
                LOADERS[extension], data_files=names, split="train", streaming=True, **_options(extension)
            )
            for batch in stream.iter(batch_size=256):
                for values in zip(*batch.values(), strict=True):
                    yield dict(zip(batch, values, strict=True))
    except UserError:
        raise
    except Exception as error:
        raise _diagnose(extension, files, error) from None


def _diagnose(extension: str, files: list[Path], error: Exception) -> UserError:
    """Which file, and where in it, made a reader fail."""
    import json

    for file in files:
        try:
            if extension == ".parquet":
                import pyarrow.parquet  # type: ignore[import-untyped]

                with plain.open_bytes(file) as handle:
                    pyarrow.parquet.ParquetFile(handle).schema_arrow  # noqa: B018
            elif extension == ".jsonl":
                for number, line in enumerate(plain.lines(file), 1):
                    if line.strip():
                        try:
                            json.loads(line)
                        except ValueError as bad:
                            return UserError(f"{file} line {number} is not JSON: {bad}")
            elif extension == ".json":
                json.loads("\n".join(plain.lines(file)))
        except UserError as bad:
            return bad
        except Exception as bad:
            return UserError(f"cannot read {file} as {extension}: {_line(bad)}")
    cause = error.__cause__ or error
    return UserError(f"cannot read {', '.join(str(file) for file in files[:3])} as {extension}: {_line(cause)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _revision(name: str) -> str:
    """The commit a hub data set stands at; fails fast and in one line where there is no network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    repo = name.split(":")[0]
    try:
        return HfApi().dataset_info(repo, timeout=10).sha or "main"
    except OfflineModeIsEnabled:
        return "cached"  # `datasets` then reads only what an earlier run has left in its cache
    except RepositoryNotFoundError:
        raise UserError(f"{name!r} is no file or folder here, and no data set on the hub (or a private one)") from None
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused {name!r}: {_line(error)}") from None
    except Exception as error:
        raise UserError(
            f"{name!r} is no file or folder here, and the hub cannot be reached ({type(error).__name__}); check the "
            "path, or set HF_HUB_OFFLINE=1 to use a cached copy"
        ) from None


def _load_hub(name: str, split: str, streaming: bool, cache: str | None) -> Any:
    _revision(name)
    repo, _, config = name.partition(":")
    try:
        return datasets.load_dataset(
            repo, config or None, split=split, streaming=streaming, cache_dir=None if streaming else cache
        )
    except Exception as error:
        raise UserError(f"cannot load {name!r} (split {split!r}) from the hub: {_line(error)}") from None
