"""Where text comes from: files, globs, folders and hub data sets, read through `datasets`.

A spec is one string or a list of them. `open_source` settles what it means and refuses what cannot be read, in one
line; nothing is loaded before `documents()` or `table()` is called.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets

from sslnlp import text_files
from sslnlp.data.columns import joined
from sslnlp.data.config import DataConfig
from sslnlp.data.files import checked_kind, find_files
from sslnlp.data.names import HEAD_ROWS
from sslnlp.data.readers import (
    alike,
    hub_revision,
    json_lines,
    json_rows,
    load_files,
    load_hub,
    parquet_column,
    parquet_rows,
    quiet,
    stream_files,
)
from sslnlp.data.texts import Texts, refuse_surrogates
from sslnlp.errors import UserError, suggest, usual_name

RUN_DOCUMENTS = 256
RUN_CHARS = 1 << 20
"""Of documents that do not come in runs, so many are put together."""


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
    asked: DataConfig = field(default_factory=DataConfig)
    """Whose keys, or options, messages name."""

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
        for _, rows in self._tables():
            yield from rows

    def headed(self) -> Iterator[tuple[str, dict[str, Any], Iterator[dict[str, Any]]]]:
        """The rows of every table that has some, with its name and its head: the first value of each column. The first
        row alone does not tell the text: its own may be missing, and a title passes for the only column of strings."""
        for name, rows in self._tables():
            rows = iter(rows)
            first = list(islice(rows, HEAD_ROWS))
            head: dict[str, Any] = {}
            for row in first:
                head |= {column: value for column, value in row.items() if head.get(column) is None}
            if first:
                yield name, head, chain(first, rows)

    def _tables(self) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
        """The rows of every file but `.txt` (of one `.csv` after the other where the columns are the same), and of each
        hub data set, with the name of the file or data set; `.parquet` for all files of that kind."""
        for extension, files in self.files.items():
            if extension == ".jsonl":
                yield from ((str(file), json_lines(file)) for file in files)
            elif extension == ".json":
                yield from ((str(file), json_rows(file)) for file in files)
            elif extension == ".parquet":
                yield extension, parquet_rows(files)
            elif extension != ".txt":
                yield from ((str(run[0]), stream_files(extension, run)) for run in alike(extension, files))
        for name in self.hub:
            with quiet():
                yield name, iter(load_hub(name, self.split, self.streaming, self.cache))

    def documents(self, text: str | None = None, split_text: str = "auto") -> Iterator[str]:
        """The texts, in a fixed order, in bounded memory. A missing value is an empty text.

        Args:
            text: the column; None for the one obvious column.
            split_text: how `.txt` files become documents (see `DataConfig.split_text`).
        """
        for value in self._values(text, split_text):
            if isinstance(value, str):
                yield value
            else:
                yield from value.strings()

    def runs(self, text: str | None = None, split_text: str = "auto", limit: int | None = None) -> Iterator[Texts]:
        """The same, at most `limit` of them, many at a time. Raises `UserError` also for text that is not Unicode."""
        left = sys.maxsize if limit is None else limit
        held: list[str] = []
        size = 0
        for value in self._values(text, split_text):
            if isinstance(value, str):
                held.append(value)
                size, left = size + len(value), left - 1
            if held and (not isinstance(value, str) or size >= RUN_CHARS or len(held) >= RUN_DOCUMENTS or not left):
                yield Texts.of(held)
                held, size = [], 0
            if isinstance(value, Texts):
                yield (run := value.part(0, left))
                left -= len(run)
            if not left:
                return
        if held:
            yield Texts.of(held)

    def _values(self, text: str | None, split_text: str) -> Iterator[str | Texts]:
        if ".txt" in self.files:
            if text not in (None, "text"):
                given, key = self.asked.name_of("text", repr(text)), self.asked.name_of("text")
                raise UserError(f"{given}: a .txt file has no columns; leave {key} out")
            yield from text_files.documents(self.files[".txt"], split_text)
        if not self.hub and set(self.files) <= {".txt"}:
            return
        column: str | None = None
        for name, head, rows in self.headed():
            column = column or text_column(head, text, self.spec, self.asked)
            names: dict[str, None] = {}  # of its columns
            for number, row in enumerate(rows, 1):
                if column not in names:  # a row may lack it, not all rows
                    names |= dict.fromkeys(row)
                if name == ".parquet":  # a format of columns: from here on the others are not read
                    for array in parquet_column(self.files[name], column):
                        if str(array.type) in ("string", "large_string"):
                            yield Texts(array)
                        else:
                            yield from (self._text(value, column) for value in array.to_pylist())
                    break
                value = self._text(row.get(column), column)
                if not value.isascii():
                    refuse_surrogates(value, f"{name} row {number}")
                yield value
            if names and column not in names:
                raise UserError(
                    f"the files of {self.spec} have different columns: {name} has no {column!r}, but "
                    f"{', '.join(names)}; name them alike"
                )

    def _text(self, value: Any, column: str) -> str:
        if value is not None and not isinstance(value, (str, int, float)):
            raise UserError(f"column {column!r} of {self.spec} holds {type(value).__name__}, not text")
        return "" if value is None or value != value else str(value)  # NaN: what pandas has for a missing value

    def table(self) -> datasets.Dataset:
        """All rows as one Arrow table on disk (memory-mapped); `.txt` lines or documents in a column `text`."""
        cache = str(Path(self.cache) / f"tables-{self.fingerprint[:16]}") if self.cache else None
        parts: list[tuple[str, datasets.Dataset]] = []
        with quiet():
            for extension, files in self.files.items():
                if extension == ".txt":
                    made = {"text": list(text_files.documents(files, "line" if len(files) == 1 else "auto"))}
                    parts.append((str(files[0]), datasets.Dataset.from_dict(made)))
                else:
                    parts += load_files(extension, files, cache)
            parts += [(name, load_hub(name, self.split, False, self.cache)) for name in self.hub]
            if not any(len(table) for _, table in parts):
                raise UserError(f"{self.spec} holds no rows")
            table = joined(parts, self.spec)
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
            digest.update(f"{name}@{hub_revision(name)}/{self.split}".encode())
        return digest.hexdigest()


def open_source(
    spec: str | Sequence[str], *, streaming: bool = False, split: str = "train", cache: str | None = None
) -> Source:
    """Settle what `spec` means.

    Args:
        spec: a file, glob, folder (recursive; one kind of file) or hub name (`name` or `name:config`), or a list.
        streaming: read hub data as a stream.
        split: of a hub data set; of a folder whose files or subfolders are named after splits (`train.parquet`,
            `test/`).
        cache: the folder in which `datasets` keeps tables.

    Raises:
        UserError: nothing there, nothing matched, an unknown extension, a folder of mixed kinds.
    """
    specs = [spec] if isinstance(spec, str) else [str(one) for one in spec]
    if not specs or not all(specs):
        raise UserError("no data was given: set data.train to a file, glob, folder or hub name")
    source = Source(", ".join(specs), split=split, streaming=streaming, cache=cache)
    found = [(one, find_files(one, split)) for one in specs]
    several = sum(1 if files is None else len(files) for _, files in found) > 1
    for one, files in found:
        if files is None:
            source.hub.append(one)
        for path in files or ():
            source.files.setdefault(checked_kind(path, several), []).append(path)
    return source


def open_part(config: DataConfig, name: str, cache: str | Path | None) -> Source:
    """`data.train` or `data.valid`, settled. Raises `UserError` when it is not set or cannot be read."""
    spec = getattr(config, name)
    if spec is None:
        raise UserError(f"data.{name} is not set: give a file, glob, folder or hub name, e.g. data.{name}=texts/")
    where = "train" if name == "train" else "validation"
    source = open_source(spec, streaming=config.streaming, split=where, cache=str(config.cache or cache or "") or None)
    return replace(source, asked=config)


def text_column(row: dict[str, Any], wanted: str | None, spec: str, asked: DataConfig) -> str:
    """The column of `row` that holds the text: the wanted one, `text`, the only column of strings, or `Text`; `asked`
    names the key or option that says so."""
    if wanted is not None:
        if wanted not in row:
            raise UserError(f"{spec} has no column {wanted!r} ({asked.name_of('text')}).{suggest(wanted, row)}")
        return wanted
    if "text" in row:
        return "text"
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if len(strings) == 1:
        return strings[0]
    found = usual_name(row, ("text",))
    if found is None:
        say = asked.name_of("text", "NAME")
        raise UserError(f"which column of {spec} is the text? It has {', '.join(row)}; say {say}")
    return found
